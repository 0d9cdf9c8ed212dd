"""CIFAR-10 and CIFAR-100 from a local folder, in the public format of Python pickles; with a ResNet-18 and a ViT.

The folder named by the environment variable ``HATAM_DATA`` holds ``cifar-10-batches-py`` or ``cifar-100-python`` as
they come out of the published archives. The images are not augmented: augmentation within the model would give
contenders that take two gradients a step two different functions.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from . import Data, Shift, Split, Task, corruptions
from .scores import cross_entropy, percent_correct

VALIDATION = 0.1  # share of the published training images, the last of them
SHIFTS: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "noise": (corruptions.noisy, (0.04, 0.08, 0.12, 0.2)),  # standard deviation
    "blur": (corruptions.blurred, (0.5, 0.75, 1, 1.5)),  # pixels
    "contrast": (corruptions.faded, (0.3, 0.5, 0.7, 0.85)),  # share lost
}


class Source(NamedTuple):
    """One of the two published sets."""

    folder: str
    train: tuple[str, ...]
    test: str
    labels: bytes
    classes: int


BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
SOURCES = {
    "cifar10": Source("cifar-10-batches-py", BATCHES, "test_batch", b"labels", 10),
    "cifar100": Source("cifar-100-python", ("train",), "test", b"fine_labels", 100),
}


class ArrayUnpickler(pickle.Unpickler):
    """Reads numpy arrays and Python's built-in containers; a pickle that asks for anything else is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if module in ("numpy.core.multiarray", "numpy._core.multiarray") and name == "_reconstruct":
            return np.empty(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"the file asks for {module}.{name}, which is no part of CIFAR; get it again")


def read(path: Path, labels: bytes) -> tuple[Tensor, Tensor]:
    """Images of shape ``(n, 3, 32, 32)`` as bytes, and their labels.

    Raises:
        pickle.UnpicklingError: the file holds more than arrays and built-in containers.
    """
    with path.open("rb") as file:
        content = ArrayUnpickler(file, encoding="bytes").load()
    return torch.from_numpy(content[b"data"]).reshape(-1, 3, 32, 32), torch.tensor(content[labels])


def folder(source: Source) -> Path:
    """Where the set shall be."""
    return Path(os.environ.get("HATAM_DATA", "")) / source.folder


def missing(name: str) -> str | None:
    """The files that are needed and not there, and the remedy."""
    source = SOURCES[name]
    absent = [file for file in (*source.train, source.test) if not (folder(source) / file).is_file()]
    if not absent:
        return None
    if "HATAM_DATA" not in os.environ:
        return f"set the environment variable HATAM_DATA to the folder that holds {source.folder}"
    return f"{folder(source)} lacks {', '.join(absent)}; unpack the set's archive for Python in HATAM_DATA"


@cache
def images(name: str) -> Data:
    """The three splits, images in [0, 1]."""
    source = SOURCES[name]
    parts = [read(folder(source) / file, source.labels) for file in source.train]
    x, y = torch.cat([x for x, _ in parts]).float() / 255, torch.cat([y for _, y in parts])
    kept = len(y) - round(VALIDATION * len(y))
    test_x, test_y = read(folder(source) / source.test, source.labels)
    return Data(Split(x[:kept], y[:kept]), Split(x[kept:], y[kept:]), Split(test_x.float() / 255, test_y))


@cache
def load(name: str) -> Data:
    """The three splits, channels standardized by the training split."""
    return Data(*(_standardized(name, split) for split in images(name)))


def shifted(name: str, shift: str, severity: float) -> Split:
    """The test images corrupted, see ``SHIFTS``; not kept, for their size."""
    corrupt, _ = SHIFTS[shift]
    x, y = images(name).test
    return _standardized(name, Split(corrupt(x, severity), y))


def _standardized(name: str, split: Split) -> Split:
    std, mean = torch.std_mean(images(name).train.x, (0, 2, 3), keepdim=True)
    return Split((split.x - mean) / std, split.y)


def resnet18(classes: int) -> nn.Module:
    """ResNet-18 for small images: a first convolution of 3 × 3 without stride, and no pooling after it."""
    from torchvision import models  # slow to import

    model: nn.Module = models.resnet18(num_classes=classes)
    model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    return model


def vit(classes: int) -> nn.Module:
    """A small ViT: patches of 4 × 4, 6 layers of width 192."""
    from torchvision import models  # slow to import

    model = models.VisionTransformer(32, 4, 6, 3, 192, 768, num_classes=classes)
    nn.init.trunc_normal_(model.heads.head.weight, std=0.02)  # torchvision's zeros would stop every gradient at first
    return model  # type: ignore[no-any-return]


def _task(name: str, label: str, build: Callable[[int], nn.Module], options: dict[str, float]) -> Task:
    source = SOURCES[name]
    return Task(
        name=f"{name}-{label}",
        summary=f"{source.folder} from HATAM_DATA, {'ResNet-18' if label == 'resnet18' else 'a small ViT'}, 30 epochs",
        data=partial(load, name),
        model=partial(build, source.classes),
        loss=cross_entropy,
        metric=percent_correct,
        metric_name="accuracy, %",
        steps=30 * 351,
        batch_size=128,
        shifts=tuple(Shift(s, severities, partial(shifted, name, s)) for s, (_, severities) in SHIFTS.items()),
        options=options,
        sharpness=False,
        missing=partial(missing, name),
    )


TASKS = [
    _task(name, label, build, options)
    for name in SOURCES
    for label, build, options in (
        ("resnet18", resnet18, {"lr": 0.001, "weight_decay": 0.1}),
        ("vit", vit, {"lr": 0.001, "weight_decay": 0.1}),
    )
]
