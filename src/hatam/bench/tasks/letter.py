"""Letters in distorted fonts from 16 measurements of their images (UCI's letter recognition, P. W. Frey, D. J. Slate).

The table comes with the R package mlbench, which Debian has; R itself does not run. 1,332 of its 20,000 rows repeat
others and are left out, lest one be in two splits. 2,000 rows train, so that a network overfits.
"""

from __future__ import annotations

from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import torch

from . import Data, Task, tabular
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
    return tabular.standardized(divided(x, y.long(), SIZES))


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
        model=partial(tabular.mlp, 16, 26, width=100),
        loss=cross_entropy,
        metric=percent_correct,
        metric_name="accuracy, %",
        steps=1500,
        batch_size=50,
        shifts=tabular.shifts(load),
        options={"lr": 0.03},
        missing=missing,
    )
]
