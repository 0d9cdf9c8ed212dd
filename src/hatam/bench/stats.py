"""Means, intervals, tests, ranks and profiles over seeds and tasks, by scipy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats


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
    """``values − baseline`` by seed, tested with Student's paired t; None where fewer than two seeds are shared.

    Example:
        >>> difference = paired({1: 2.0, 2: 4.0, 3: 3.0}, {1: 1.0, 2: 2.0, 3: 2.0})
        >>> round(difference.mean, 2), difference.n, round(difference.p, 3)
        (1.33, 3, 0.057)
    """
    seeds = sorted(values.keys() & baseline.keys())
    differences = [values[seed] - baseline[seed] for seed in seeds]
    if len(seeds) < 2:
        return None
    if np.ptp(differences) == 0:
        mean = differences[0]
        return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0, len(seeds))
    test = stats.ttest_1samp(differences, 0.0)
    low, high = test.confidence_interval()
    return Difference(float(np.mean(differences)), float(low), float(high), float(test.pvalue), len(seeds))


def bootstrap(values: Sequence[float]) -> Estimate:
    """Mean with its 95% bootstrap interval, bias-corrected and accelerated (Efron 1987); the same every time.

    Example:
        >>> mean, low, high, n = bootstrap([1.0, 2.0, 3.0, 6.0])
        >>> 1 < low < mean < high < 6
        True
    """
    if len(values) < 2 or np.ptp(values) == 0:
        return estimate(values)
    resampled = stats.bootstrap((values,), np.mean, method="BCa", random_state=np.random.default_rng(0))
    low, high = resampled.confidence_interval
    return Estimate(float(np.mean(values)), float(low), float(high), len(values))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values corrected for their number by Holm's step-down method (1979).

    Example:
        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
        {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    corrected: dict[str, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}


def mean_ranks(scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean rank over tasks, 1 for the best; equal scores share their ranks' mean.

    Args:
        scores: by task and contender, higher is better, −inf where it diverged; every task has every contender.

    Raises:
        ValueError: a task lacks a contender or has a NaN.

    Example:
        >>> mean_ranks({"t": {"a": 3.0, "b": 1.0, "c": 1.0}, "u": {"a": 1.0, "b": 2.0, "c": 0.0}})
        {'a': 1.5, 'b': 1.75, 'c': 2.75}
    """
    names = list(next(iter(scores.values())))
    for task, row in scores.items():
        if row.keys() != set(names) or any(math.isnan(score) for score in row.values()):
            raise ValueError(f"the scores on {task!r} are not one number for each of {', '.join(names)}: {dict(row)!r}")
    ranks = np.array([stats.rankdata([-row[name] for name in names]) for row in scores.values()])
    return dict(zip(names, ranks.mean(0).tolist(), strict=True))


def profile(costs: Mapping[str, Mapping[str, float]], factors: Sequence[float]) -> dict[str, list[float]]:
    """Performance profiles (Dolan and Moré 2002): the share of tasks solved within a factor of the least cost.

    Args:
        costs: by task and contender, for instance the time to a validation target; inf where it was not reached.
        factors: at which the profiles are wanted, >= 1.

    Example:
        >>> profile({"t": {"a": 1.0, "b": 2.0}, "u": {"a": float("inf"), "b": 3.0}}, [1.0, 2.0])
        {'a': [0.5, 0.5], 'b': [0.5, 1.0]}
    """
    names = list(next(iter(costs.values())))
    found: dict[str, list[float]] = {}
    for name in names:
        ratios = [row[name] / min(row.values()) if math.isfinite(row[name]) else math.inf for row in costs.values()]
        found[name] = [sum(ratio <= factor for ratio in ratios) / len(ratios) for factor in factors]
    return found


def steps_to(curve: Sequence[Mapping[str, float]], target: float, *, higher_is_better: bool) -> float:
    """The first step of a curve at which validation reaches a target; inf where it never does.

    Example:
        >>> curve = [{"step": 10, "validation": 50.0}, {"step": 20, "validation": 60.0}]
        >>> steps_to(curve, 55.0, higher_is_better=True), steps_to(curve, 55.0, higher_is_better=False)
        (20.0, 10.0)
    """
    sign = 1 if higher_is_better else -1
    reached = (float(point["step"]) for point in curve if sign * float(point["validation"]) >= sign * target)
    return next(reached, math.inf)
