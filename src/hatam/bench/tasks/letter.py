"""Letters in distorted fonts from 16 measurements of their images (UCI's letter recognition, P. W. Frey, D. J. Slate).

The table comes with the R package mlbench, which Debian has; R itself does not run. 1,332 of its 20,000 rows repeat
others and are left out, lest one be in two splits. 2,000 rows train, so that a network overfits.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from . import Data, Shift, Split, Task
from .scores import cross_entropy, percent_correct
from .splits import divided

FILE = Path("/usr/lib/R/site-library/mlbench/data/LetterRecognition.rda")
SIZES = (2000, 2000, 10_000)


@cache
def load() -> Data:
    """The three splits, measurements standardized by the training split; the letters in order."""
    import rdata  # slow to import

    table = rdata.read_rda(FILE, default_encoding="ascii")["LetterRecognition"].drop_duplicates()
    x, y = torch.tensor(table.drop(columns="lettr").to_numpy()), torch.tensor(table["lettr"].cat.codes.to_numpy())
    data = divided(x, y.long(), SIZES)
    mean, std = data.train.x.mean(0), data.train.x.std(0)
    return Data(*(Split(((split.x - mean) / std).float(), split.y) for split in data))


@cache
def noisy(sigma: float) -> Split:
    """Test data with Gaussian noise, in standard deviations of each feature; the same draw at every severity."""
    x, y = load().test
    return Split(x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), y)


@cache
def incomplete(share: float) -> Split:
    """Test data with a share of the values unknown and set to their feature's mean; the more severe lacks them too."""
    x, y = load().test
    return Split(x.where(torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) >= share, 0.0), y)


def mlp(width: int = 100) -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(nn.Linear(16, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 26))


def missing() -> str | None:
    """What to install."""
    if not FILE.is_file():
        return f"there is no {FILE}; apt-get install --no-install-recommends r-cran-mlbench"
    return None if find_spec("rdata") else "not installed: rdata; pip install 'hatam[bench]'"


TASKS = [
    Task(
        name="letter",
        summary="letters from 16 measurements, 2,000 labels, an MLP of 14,426 parameters",
        data=load,
        model=mlp,
        loss=cross_entropy,
        metric=percent_correct,
        metric_name="accuracy, %",
        steps=1500,
        batch_size=50,
        shifts=(Shift("noise", (0.25, 0.5, 1.0, 2.0), noisy), Shift("missing", (0.1, 0.2, 0.4, 0.6), incomplete)),
        options={"lr": 0.03},
        missing=missing,
    )
]
