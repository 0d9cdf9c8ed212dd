"""MNIST-1D: ten one-dimensional digit shapes, padded, moved, sheared and covered with noise (arXiv 2011.14439).

Made by the generator of the package ``mnist1d`` on this machine and kept in the user's cache. Train is the published
train split (4,000 samples, generator seed 42). Validation and test come from the same generator with other seeds: the
published test split has 1,000 samples, too few to see a difference of one point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor, nn

from . import Data, Shift, Split, Task
from .scores import cross_entropy, percent_correct
from .splits import Array, kept, noisy_labels

# name: (generator seed, samples made, samples used). The published set is 5,000 samples, the first 4,000 train.
SPLITS = {"train": (42, 5000, 4000), "validation": (43, 4000, 4000), "test": (44, 10000, 10000)}

# name: (the generator's parameters that change, with their values in training; severities from the training's on).
SHIFTS: dict[str, tuple[dict[str, float], tuple[float, ...]]] = {
    "noise": ({"corr_noise_scale": 0.25, "iid_noise_scale": 0.02}, (1, 1.5, 2, 3, 4)),
    "shear": ({"shear_scale": 0.75}, (0.75, 1, 1.5, 2, 3)),
    "scale": ({"scale_coeff": 0.4}, (0.4, 0.8, 1.2, 1.6)),
    "translation": ({"max_translation": 48}, (48, 54, 60, 66, 72)),
}
SHIFTED = 2000  # samples of a shifted split


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


@cache
def load() -> Data:
    """The three splits, from the cache where they are there."""
    return Data(**{name: _split(*numbers) for name, numbers in SPLITS.items()})


@cache
def load_noisy() -> Data:
    """The same with 20% of the training labels wrong."""
    return noisy_labels(load(), classes=10)


@cache
def shifted(name: str, severity: float) -> Split:
    """Test data made with other parameters of the generator.

    The generator brings whatever it makes to mean 0 and variance 1: noise does not also change the scale.

    Args:
        name: one of ``SHIFTS``.
        severity: noise: factor on both kinds of noise; the others: the generator's parameter itself.
    """
    parameters, _ = SHIFTS[name]
    changed = {key: severity * (value if name == "noise" else 1) for key, value in parameters.items()}
    return _split(SPLITS["test"][0], SHIFTED, SHIFTED, changed)


def _split(seed: int, made: int, used: int, changed: Mapping[str, float] = MappingProxyType({})) -> Split:
    suffix = "".join(f"-{key}={value:g}" for key, value in changed.items())
    arrays = kept(f"mnist1d-{seed}-{made}{suffix}.npz", partial(_generate, seed, made, changed))
    return Split(torch.from_numpy(arrays["x"][:used]), torch.from_numpy(arrays["y"][:used]))


def _generate(seed: int, samples: int, changed: Mapping[str, float]) -> dict[str, Array]:
    from mnist1d.data import get_dataset_args, make_dataset  # slow to import, and needed once per machine

    args = get_dataset_args()
    args.seed, args.num_samples, args.train_split = seed, samples, 1.0
    for key, value in changed.items():
        setattr(args, key, type(getattr(args, key))(value))  # whole numbers stay whole
    before = np.random.get_state()  # noqa: NPY002  (the generator draws from numpy's global state)
    try:
        made = make_dataset(args)
    finally:
        np.random.set_state(before)  # noqa: NPY002
    return {"x": made["x"].astype(np.float32), "y": made["y"].astype(np.int64)}


def _task(
    name: str,
    summary: str,
    model: Callable[[], nn.Module],
    data: Callable[[], Data] = load,
    steps: int = 2000,
    lr: float = 0.03,
) -> Task:
    return Task(
        name=name,
        summary=summary,
        data=data,
        model=model,
        loss=cross_entropy,
        metric=percent_correct,
        metric_name="accuracy, %",
        steps=steps,
        batch_size=128,
        shifts=tuple(Shift(name, severities, partial(shifted, name)) for name, (_, severities) in SHIFTS.items()),
        options={"lr": lr},
    )


TASKS = [
    _task("mnist1d-mlp", "MNIST-1D with the MLP of its paper, 15,210 parameters", MLP),
    _task("mnist1d-mlp-plain", "the same MLP without its skip connection", partial(MLP, skip=False)),
    _task(
        "mnist1d-conv",
        "MNIST-1D with the convolutional net of its paper, 5,210 parameters",
        ConvNet,
        steps=1000,
        lr=0.06,
    ),
    _task("mnist1d-mlp-noise", "the MLP with 20% of the training labels wrong", MLP, load_noisy, lr=0.06),
    _task(
        "mnist1d-conv-noise",
        "the convolutional net with 20% of the training labels wrong",
        ConvNet,
        load_noisy,
        1000,
        0.06,
    ),
]
