"""Measurements of patients, in scikit-learn: small tables, on which a network overfits and a linear model is strong.

Of the tables that scikit-learn brings, iris, wine and linnerud have 20 to 178 rows: one row more or less would decide.

- ``diabetes`` (442 patients, 10 measurements; progression after a year): mostly noise, so that every method fits the
  training data perfectly if let and the score hangs on what holds it back.
- ``breast-cancer`` (569 tumours, 30 measurements; malignant or not) with 100 labels. Nearly all tumours are
  classified right, so the score is the cross-entropy, which also sees confidence in what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor, nn

from . import Data, Shift, Split, Task
from .scores import bits, cross_entropy, squared_error
from .splits import divided

Load = Callable[[], Data]


@cache
def load_diabetes() -> Data:
    """Measurements and progression, standardized by the training split."""
    from sklearn.datasets import load_diabetes as load  # slow to import

    x, y = load(return_X_y=True)
    data = standardized(divided(torch.from_numpy(x), torch.from_numpy(y), (180, 112, 150), stratified=False))
    mean, std = data.train.y.mean(), data.train.y.std()
    return Data(*(Split(split.x, ((split.y - mean) / std).float()) for split in data))


@cache
def load_breast_cancer() -> Data:
    """Measurements standardized by the training split; 1 is benign."""
    from sklearn.datasets import load_breast_cancer as load  # slow to import

    x, y = load(return_X_y=True)
    return standardized(divided(torch.from_numpy(x), torch.from_numpy(y).long(), (100, 169, 300)))


def standardized(data: Data) -> Data:
    """Features of mean 0 and variance 1 in the training split."""
    mean, std = data.train.x.mean(0), data.train.x.std(0)
    return Data(*(Split(((split.x - mean) / std).float(), split.y) for split in data))


@cache
def noise(load: Load, sigma: float) -> Split:
    """Test data with Gaussian noise, in standard deviations of each feature; the same draw at every severity."""
    x, y = load().test
    return Split(x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), y)


@cache
def missing(load: Load, share: float) -> Split:
    """Test data with a share of the values unknown and set to their feature's mean; the more severe lacks them too."""
    x, y = load().test
    return Split(x.where(torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) >= share, 0.0), y)


def shifts(load: Load) -> tuple[Shift, ...]:
    """Both of them, of a table whose features are standardized."""
    return (
        Shift("noise", (0.25, 0.5, 1.0, 2.0), partial(noise, load)),
        Shift("missing", (0.1, 0.2, 0.4, 0.6), partial(missing, load)),
    )


def mlp(inputs: int, outputs: int, width: int = 64) -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )


def _task(
    name: str, summary: str, data: Load, model: Callable[[], nn.Module], scores: tuple[Callable[..., Tensor], ...]
) -> Task:
    loss, metric = scores
    return Task(
        name=name,
        summary=summary,
        data=data,
        model=model,
        loss=loss,
        metric=metric,
        metric_name="cross-entropy, bits" if metric is bits else "squared error, of the variance",
        higher_is_better=False,
        steps=1000,
        batch_size=20,
        shifts=shifts(data),
        options={"lr": 0.001},
    )


TASKS = [
    _task(
        "diabetes",
        "progression of diabetes from 10 measurements, 180 patients, an MLP of 4,929 parameters",
        load_diabetes,
        partial(mlp, 10, 1),
        (squared_error, squared_error),
    ),
    _task(
        "breast-cancer",
        "breast tumours from 30 measurements, 100 labels, an MLP of 6,274 parameters",
        load_breast_cancer,
        partial(mlp, 30, 2),
        (cross_entropy, bits),
    ),
]
