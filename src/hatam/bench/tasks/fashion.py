"""Fashion-MNIST, 28 × 28 pixels of ten kinds of clothes (arXiv 1708.07747), from the Debian package that holds it.

5,000 of the 60,000 training images train, 500 a class, and 2,000 others are for validation; the test set is the
published one, whole.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from . import Data, Shift, Split, Task, corruptions
from .scores import cross_entropy, percent_correct
from .splits import divided, noisy_labels

FOLDER = Path("/usr/share/datasets/fashion-mnist")
FILES = {kind: (f"{kind}-images-idx3-ubyte.gz", f"{kind}-labels-idx1-ubyte.gz") for kind in ("train", "t10k")}
SIZES = (5000, 2000, 53_000)  # of the published training images; the last are not used
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


@cache
def load() -> Data:
    """The three splits, images of shape ``(1, 28, 28)`` in [0, 1]."""
    train, validation, _ = divided(*_published("train"), SIZES)
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
]
