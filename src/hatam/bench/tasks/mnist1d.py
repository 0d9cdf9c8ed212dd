"""MNIST-1D: ten one-dimensional digit shapes, padded, moved, sheared and covered with noise (arXiv 2011.14439).

Made by the generator of the package ``mnist1d`` on this machine and kept in the user's cache. Train is the published
train split (4,000 samples, generator seed 42). Validation and test come from the same generator with other seeds: the
published test split has 1,000 samples, too few to see a difference of one point.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import platformdirs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import Data, Split, Task

Array: TypeAlias = "np.ndarray[Any, Any]"

# name: (generator seed, samples made, samples used). The published set is 5,000 samples, the first 4,000 train.
SPLITS = {"train": (42, 5000, 4000), "validation": (43, 4000, 4000), "test": (44, 10000, 10000)}


class MLP(nn.Module):
    """The MLP of the paper: width 100, one residual block; or the same without the skip connection."""

    def __init__(self, width: int = 100, *, skip: bool = True) -> None:
        super().__init__()
        self.skip = skip
        self.linear1 = nn.Linear(40, width)
        self.linear2 = nn.Linear(width, width)
        self.linear3 = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear1(x).relu()
        residual = self.linear2(h).relu()
        h = h + residual if self.skip else residual
        return self.linear3(h)  # type: ignore[no-any-return]


class ConvNet(nn.Module):
    """The convolutional net of the paper: three strided convolutions of 25 channels and a linear layer."""

    def __init__(self, channels: int = 25) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(1, channels, 5, stride=2, padding=1)
        self.conv2 = nn.Conv1d(channels, channels, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(channels, channels, 3, stride=2, padding=1)
        self.linear = nn.Linear(5 * channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(x.unsqueeze(1)).relu()
        h = self.conv3(self.conv2(h).relu()).relu()
        return self.linear(h.flatten(1))  # type: ignore[no-any-return]


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every sample."""
    return F.cross_entropy(outputs, targets, reduction="none")


def percent_correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """100 where the largest output is the target, else 0."""
    return (outputs.argmax(1) == targets).float() * 100


@cache
def load() -> Data:
    """The three splits, from the cache where they are there."""
    return Data(**{name: _split(name) for name in SPLITS})


def _split(name: str) -> Split:
    seed, made, used = SPLITS[name]
    path = Path(platformdirs.user_cache_dir("hatam")) / f"mnist1d-{seed}-{made}.npz"
    if not path.exists():
        _write(path, *_generate(seed, made))
    with np.load(path) as arrays:
        return Split(torch.from_numpy(arrays["x"][:used]), torch.from_numpy(arrays["y"][:used]))


def _generate(seed: int, samples: int) -> tuple[Array, Array]:
    from mnist1d.data import get_dataset_args, make_dataset  # slow to import, and needed once per machine

    args = get_dataset_args()
    args.seed, args.num_samples, args.train_split = seed, samples, 1.0
    before = np.random.get_state()  # noqa: NPY002  (the generator draws from numpy's global state)
    try:
        made = make_dataset(args)
    finally:
        np.random.set_state(before)  # noqa: NPY002
    return made["x"].astype(np.float32), made["y"].astype(np.int64)


def _write(path: Path, x: Array, y: Array) -> None:
    """Whole or not at all: several processes may make the same file at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".npz")
    with os.fdopen(handle, "wb") as file:
        np.savez_compressed(file, x=x, y=y)
    os.replace(temporary, path)


def _task(name: str, summary: str, model: Callable[[], nn.Module]) -> Task:
    return Task(
        name=name,
        summary=summary,
        data=load,
        model=model,
        loss=cross_entropy,
        metric=percent_correct,
        metric_name="accuracy, %",
        steps=2000,
        batch_size=128,
    )


TASKS = [
    _task("mnist1d-mlp", "MNIST-1D with the MLP of its paper, 15,210 parameters", MLP),
    _task("mnist1d-mlp-plain", "the same MLP without its skip connection", partial(MLP, skip=False)),
    _task("mnist1d-conv", "MNIST-1D with the convolutional net of its paper, 5,210 parameters", ConvNet),
]
