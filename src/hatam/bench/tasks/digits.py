"""Handwritten digits of 8 × 8 pixels (UCI's optical recognition set, in scikit-learn), with few labels.

300 of the 1,797 images train, 30 a class: with all of them any method is right on nearly every image.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor, nn

from . import Data, Shift, Split, Task, corruptions
from .scores import cross_entropy, percent_correct
from .splits import divided, noisy_labels

SIZES = (300, 497, 1000)

SHIFTS: dict[str, tuple[Callable[[Tensor, float], Tensor], tuple[float, ...]]] = {
    "rotation": (corruptions.rotated, (10, 20, 30, 40)),  # degrees
    "blur": (corruptions.blurred, (0.5, 0.75, 1, 1.5)),  # pixels
    "noise": (corruptions.noisy, (0.1, 0.2, 0.3, 0.5)),  # standard deviation
    "contrast": (corruptions.faded, (0.3, 0.5, 0.7, 0.85)),  # share lost
}


@cache
def load() -> Data:
    """The three splits, images of shape ``(1, 8, 8)`` in [0, 1]."""
    from sklearn.datasets import load_digits  # slow to import

    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 16
    return divided(x, torch.from_numpy(labels).long(), SIZES)


@cache
def load_noisy() -> Data:
    """The same with 20% of the training labels wrong."""
    return noisy_labels(load(), classes=10)


@cache
def shifted(name: str, severity: float) -> Split:
    """The test images corrupted, see ``SHIFTS``."""
    corrupt, _ = SHIFTS[name]
    return Split(corrupt(load().test.x, severity), load().test.y)


def mlp(width: int = 100) -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )


def _task(name: str, summary: str, data: Callable[[], Data], lr: float) -> Task:
    return Task(
        name=name,
        summary=summary,
        data=data,
        model=mlp,
        loss=cross_entropy,
        metric=percent_correct,
        metric_name="accuracy, %",
        steps=1500,
        batch_size=50,
        shifts=tuple(Shift(name, severities, partial(shifted, name)) for name, (_, severities) in SHIFTS.items()),
        options={"lr": lr},
    )


TASKS = [
    _task("digits", "digits of 8 × 8 pixels, 300 labels, an MLP of 17,610 parameters", load, 0.02),
    _task("digits-noise", "the same with 20% of the training labels wrong", load_noisy, 3e-4),
]
