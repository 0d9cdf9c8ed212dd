"""Means, intervals and paired differences over seeds, by scipy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

FLOAT32_EPS = float(np.finfo(np.float32).eps)


class Estimate(NamedTuple):
    """A mean with its 95% interval; the interval is NaN where n < 2."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        return (self.high - self.low) / 2


class Difference(NamedTuple):
    """A mean difference over the seeds that both have, with its 95% interval and two-sided p-value."""

    mean: float
    low: float
    high: float
    p: float
    n: int


def estimate(values: Sequence[float]) -> Estimate:
    """Student's t interval of the mean.

    Example:
        >>> [round(x, 2) for x in estimate([1.0, 2.0, 3.0])]
        [2.0, -0.48, 4.48, 3]
    """
    if len(values) < 2 or np.ptp(values) == 0:
        mean = float(np.mean(values))
        return Estimate(mean, *((mean, mean) if len(values) > 1 else (float("nan"),) * 2), n=len(values))
    low, high = stats.ttest_1samp(values, 0.0).confidence_interval()
    return Estimate(float(np.mean(values)), float(low), float(high), len(values))


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """``values − baseline`` by seed, tested with Student's paired t.

    None where fewer than two seeds are shared, or where one of either side has no finite score: a difference of those
    alone that survived would flatter. Interval and p are NaN where all differences are the same, to the rounding of
    float32, and not 0, as two seeds of an accuracy may be: that tells nothing of their spread.

    Example:
        >>> difference = paired({1: 2.0, 2: 4.0, 3: 3.0}, {1: 1.0, 2: 2.0, 3: 2.0})
        >>> round(difference.mean, 2), difference.n, round(difference.p, 3)
        (1.33, 3, 0.057)
    """
    seeds = sorted(values.keys() & baseline.keys())
    differences = [values[seed] - baseline[seed] for seed in seeds]
    if len(seeds) < 2 or not np.isfinite([*values.values(), *baseline.values()]).all():
        return None
    rounding = 2 * FLOAT32_EPS * max(abs(x) for seed in seeds for x in (values[seed], baseline[seed]))
    if np.ptp(differences) <= rounding:
        mean, nan = float(np.mean(differences)), float("nan")
        return Difference(mean, *((mean, mean, 1.0) if abs(mean) <= rounding else (nan, nan, nan)), n=len(seeds))
    test = stats.ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval()
    return Difference(float(np.mean(differences)), float(low), float(high), float(test.pvalue), len(seeds))


def p_text(p: float) -> str:
    """A p-value as tables show it.

    Example:
        >>> p_text(0.0004), p_text(0.05), p_text(float("nan"))
        ('<0.001', '0.050', '–')
    """
    if np.isnan(p):
        return "–"
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number by Holm's step-down procedure (Scand. J. Statist. 6, 1979).

    NaN, of a difference that could not be told, counts as 1.

    Example:
        >>> [round(p, 2) for p in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    p = np.nan_to_num(np.asarray(p_values, dtype=np.float64), nan=1.0)
    order = np.argsort(p)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return [float(x) for x in corrected]
