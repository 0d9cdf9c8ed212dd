"""What a report says about many runs at once: corrected p-values, ranks, profiles, and intervals by resampling."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ..stats import Difference

Floats = NDArray[np.float64]
RESAMPLES = 2000
Name = TypeVar("Name")


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down procedure (Scand. J. Statist. 6, 1979).

    Example:
        >>> [round(p, 2) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(x) for x in corrected]


def corrected(differences: Mapping[Name, Difference | None]) -> dict[Name, float]:
    """:func:`holm` of differences by their names. One that could not be told, as a run was lost, counts as p = 1."""
    p_values = holm([1.0 if d is None or np.isnan(d.p) else d.p for d in differences.values()])
    return dict(zip(differences, p_values, strict=True))


def resampled(statistic: Callable[[list[Floats]], Floats], tables: Sequence[Floats]) -> tuple[Floats, Floats]:
    """The 95% percentile interval of a statistic over seeds, each table's columns drawn anew with replacement.

    Args:
        statistic: from tables, each ``(rows, resamples, seeds)``, to ``(rows, resamples)``.
        tables: scores, each ``(rows, seeds)``; the rows stay paired.

    Returns:
        low and high, each ``(rows,)``. The same tables give the same interval.
    """
    rng = np.random.default_rng(0)
    drawn = [table[:, rng.integers(table.shape[1], size=(RESAMPLES, table.shape[1]))] for table in tables]
    low, high = np.percentile(statistic(drawn), [2.5, 97.5], axis=1, method="nearest")
    return low, high


def mean_ranks(tables: Sequence[Floats]) -> Floats:
    """The rank of each row by its mean over the last axis, 1 for the highest, averaged over the tables.

    A row with a score of −inf is last; means that are equal, to the rounding of float32, share their ranks.

    Example:
        >>> mean_ranks([np.array([[3.0, 3.0], [1.0, 2.0]]), np.array([[1.0, 1.0], [1.0, 1.0]])])
        array([1.25, 1.75])
    """
    ranks = [stats.rankdata(-_rounded(table.mean(axis=-1)), axis=0) for table in tables]
    return np.asarray(np.mean(ranks, axis=0), dtype=np.float64)


def _rounded(means: Floats) -> Floats:
    """To six digits each."""
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 10.0 ** (5 - np.floor(np.log10(np.abs(means))))
        return np.where(np.isfinite(means) & np.isfinite(scale), np.round(means * scale) / scale, means)


def cost_to_target(curve: Sequence[tuple[int, float]], target: float, cost_per_step: float) -> float:
    """What a run spent until its curve first reached the target, higher being better; infinite where it never did.

    Example:
        >>> cost_to_target([(100, 0.5), (200, 0.7)], 0.6, cost_per_step=0.01)
        2.0
    """
    return next((step * cost_per_step for step, score in curve if score >= target), float("inf"))


def profile(costs: Floats, ratios: Floats) -> Floats:
    """Share of problems that each solver ends within a ratio of the cheapest one: Dolan and Moré, arXiv cs/0102001.

    Args:
        costs: ``(solvers, problems)``; infinite where a solver never gets there.
        ratios: at least 1, ``(points,)``.

    Returns:
        ``(solvers, points)``, each from 0 to 1. A problem that nobody solves counts against all.

    Example:
        >>> profile(np.array([[1.0, 4.0], [2.0, np.inf]]), np.array([1.0, 2.0]))
        array([[1. , 1. ],
               [0. , 0.5]])
    """
    best = costs.min(axis=0)
    relative = np.where(np.isfinite(costs), costs / np.where(np.isfinite(best), best, 1.0), np.inf)
    return np.asarray((relative[:, :, None] <= ratios).mean(axis=1), dtype=np.float64)
