"""Fashion-MNIST, 28 × 28 pixels of ten kinds of clothes (arXiv 1708.07747), from the Debian package that holds it.

Of the 60,000 training images 5,000 train, 500 a class, and 2,000 others are for validation; of ``fashion-whole`` 55,000
and the other 5,000. The test set is the published one, whole.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from functools import cache, partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import Data, Shift, Split, Task, corruptions
from .scores import cross_entropy, percent_correct
from .splits import divided, noisy_labels

FOLDER = Path("/usr/share/datasets/fashion-mnist")
FILES = {kind: (f"{kind}-images-idx3-ubyte.gz", f"{kind}-labels-idx1-ubyte.gz") for kind in ("train", "t10k")}
SIZES = (5000, 2000, 53_000)  # of the published training images; the last are not used
WHOLE = (55_000, 5000, 0)
MOVED = 2  # pixels by which an image is shifted at most
SHIFTED = 2000  # test images of a shifted split

SHIFTS: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "rotation": (corruptions.rotated, (10, 20, 30, 40)),  # degrees
    "blur": (corruptions.blurred, (0.5, 1, 1.5, 2.5)),  # pixels
    "noise": (corruptions.noisy, (0.05, 0.1, 0.2, 0.3)),  # standard deviation
    "contrast": (corruptions.faded, (0.3, 0.5, 0.7, 0.85)),  # share lost
}


def convnet() -> nn.Module:
    """Patches of 4 × 4, two convolutions with stride, a linear layer: a fraction of what the full resolution costs."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=4),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 4, 10),
    )


class Residual(nn.Module):
    """Two convolutions of 3 × 3 with BatchNorm, beside a shortcut. Where the width changes the first has stride 2, and
    the shortcut is a convolution of 1 × 1."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        stride = 1 + (before != after)
        first, second = _convolution(before, after, 3, stride), _convolution(after, after, 3, 1)
        self.convolutions = nn.Sequential(*first, nn.ReLU(), *second)
        self.shortcut = nn.Identity() if stride == 1 else nn.Sequential(*_convolution(before, after, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.convolutions(x) + self.shortcut(x))


def _convolution(before: int, after: int, size: int, stride: int) -> tuple[nn.Module, nn.Module]:
    return nn.Conv2d(before, after, size, stride, size // 2, bias=False), nn.BatchNorm2d(after)


def resnet(widths: Sequence[int] = (16, 32, 64, 128)) -> nn.Module:
    """A convolution of 3 × 3 at the full resolution, then residual blocks.

    Args:
        widths: of the first convolution and of each block; where it changes the resolution is halved. 64 three times,
            then 128, 256 and 512 twice each, is ResNet-18 as for small images, for one channel. Multiples of 8: with
            fewer than 8 channels torch 2.14's backward of the shortcut crashes on some CPUs.
    """
    layers = [*_convolution(1, widths[0], 3, 1), nn.ReLU()]
    layers += [Residual(before, after) for before, after in pairwise(widths)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))
    return model.to(memory_format=torch.channels_last)  # faster


def moved(x: Tensor, generator: torch.Generator) -> Tensor:
    """Images shifted by up to 2 pixels along each axis, each by its own, and mirrored with probability 1/2.

    Args:
        x: shape ``(n, channels, height, width)``; what comes in from outside is 0.
        generator: on the device of the images.
    """
    n, channels, height, width = x.shape
    down, right = torch.randint(2 * MOVED + 1, (2, n, 1), generator=generator, device=x.device)
    mirrored = torch.rand(n, 1, generator=generator, device=x.device) < 0.5
    rows, columns = down + torch.arange(height, device=x.device), right + torch.arange(width, device=x.device)
    columns = columns.flip(1).where(mirrored, columns)
    samples, planes = (torch.arange(size, device=x.device) for size in (n, channels))
    places = samples[:, None, None, None], planes[:, None, None], rows[:, None, :, None], columns[:, None, None, :]
    return F.pad(x, [MOVED] * 4)[places]


@cache
def load() -> Data:
    """The three splits, images of shape ``(1, 28, 28)`` in [0, 1]."""
    return _divided(SIZES)


@cache
def load_whole() -> Data:
    """All of the published training images, for training and validation."""
    return _divided(WHOLE)


def _divided(sizes: tuple[int, int, int]) -> Data:
    train, validation, _ = divided(*_published("train"), sizes)
    return Data(*(Split(x.unsqueeze(1).float() / 255, y) for x, y in (train, validation, _published("t10k"))))


@cache
def load_noisy() -> Data:
    """The same with 20% of the training labels wrong."""
    return noisy_labels(load(), classes=10)


@cache
def shifted(name: str, severity: float) -> Split:
    """The first test images corrupted, see ``SHIFTS``."""
    corrupt, _ = SHIFTS[name]
    x, y = (tensor[:SHIFTED] for tensor in load().test)
    return Split(corrupt(x, severity), y)


def missing() -> str | None:
    """What to install."""
    absent = [file for files in FILES.values() for file in files if not (FOLDER / file).is_file()]
    return f"{FOLDER} lacks {', '.join(absent)}; apt-get install dataset-fashion-mnist" if absent else None


def _published(kind: str) -> Split:
    images, labels = (read(FOLDER / file) for file in FILES[kind])
    return Split(images, labels.long())


def read(path: Path) -> Tensor:
    """A file in the format IDX: two zeros, the type 8 of bytes, the number of axes, their lengths, the bytes."""
    content = gzip.decompress(path.read_bytes())
    shape = np.frombuffer(content, ">u4", content[3], offset=4)
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape).copy())


def _task(name: str, summary: str, data: Callable[[], Data], lr: float) -> Task:
    return Task(
        name=name,
        summary=summary,
        data=data,
        model=convnet,
        loss=cross_entropy,
        metric=percent_correct,
        metric_name="accuracy, %",
        steps=20 * 39,
        batch_size=128,
        curve_points=5,
        shifts=tuple(Shift(name, severities, partial(shifted, name)) for name, (_, severities) in SHIFTS.items()),
        options={"lr": lr, "weight_decay": 0.1},
        missing=missing,
    )


TASKS = [
    _task("fashion", "Fashion-MNIST, 5,000 labels, 20 epochs, a convolutional net of 25,978 parameters", load, 0.01),
    _task("fashion-noise", "the same with 20% of the training labels wrong", load_noisy, 0.003),
    Task(
        name="fashion-whole",
        summary="all of Fashion-MNIST, augmented, 4 epochs, a residual net of 303,866 parameters",
        data=load_whole,
        model=resnet,
        loss=cross_entropy,
        metric=percent_correct,
        metric_name="accuracy, %",
        steps=4 * 429,
        batch_size=128,
        curve_points=4,
        options={"lr": 0.003, "weight_decay": 0.1},
        sharpness=False,
        augment=moved,
        missing=missing,
    ),
]
