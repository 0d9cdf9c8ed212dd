"""Factors on the learning rate over a run, at a step counted from 0."""

from __future__ import annotations

import math
from collections.abc import Callable

LAST = 0.2  # of the steps, over which ``late`` falls
Schedule = Callable[[int, int, float], float]


def cosine(step: int, steps: int, warmup: float) -> float:
    """Linear warm-up over a share ``warmup`` of the steps, then a cosine to exactly 0 at the last step."""
    rising = _rising(steps, warmup)
    if step < rising:
        return constant(step, steps, warmup)
    return (1 + math.cos(math.pi * (step - rising + 1) / (steps - rising))) / 2


def constant(step: int, steps: int, warmup: float) -> float:
    """The same warm-up, then 1: for what averages its weights instead of decaying lr."""
    return min(1.0, (step + 1) / _rising(steps, warmup))


def late(step: int, steps: int, warmup: float) -> float:
    """The same warm-up, then 1, and over the last fifth of the steps a line to exactly 0 at the last step."""
    return min(constant(step, steps, warmup), (steps - step - 1) / (LAST * steps))


SCHEDULES: dict[str, Schedule] = {"cosine": cosine, "late": late, "constant": constant}


def _rising(steps: int, warmup: float) -> int:
    return max(1, round(warmup * steps))
