"""Statement 9: the ceiling on sharpness of the straightened form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes

from hatam import theory
from hatam.straightened_adamw import StraightenedAdamW

from .check import Check, Job, Run, chosen, interval, table
from .edge import POINTS, full_batch
from .network import denominators, flat

CASES: dict[str, dict[str, Any]] = {
    "β1 = 0.9, memory 10": {"betas": (0.9, 0.99), "memory": 10.0},
    "β1 = 0.5, memory 10": {"betas": (0.5, 0.99), "memory": 10.0},
    "β1 = 0.5, memory 100": {"betas": (0.5, 0.99), "memory": 100.0},
}


def straightened(case: str, lr: float, seed: int, steps: int = 4000) -> Run:
    """lr λ_max(P⁻¹H) at x along full-batch training at a constant lr, where there is no reach."""
    found = []
    make = partial(StraightenedAdamW, eps=1e-7, weight_decay=0.0, **CASES[case])
    for made, params, curvature in full_batch(make, lr, seed, steps):
        with made.straightened():
            found.append(lr * curvature(flat(denominators(made, params)).rsqrt()))
    return {"sharpness": found}


def jobs(seeds: int) -> list[Job]:
    return [{"case": case, "lr": 1e-3, "seed": seed} for case in CASES for seed in range(seeds)]


def bound(case: str) -> float:
    """The ceiling of a case."""
    options = CASES[case]
    return theory.straightened_ceiling(1 / options["memory"], 1 - options["betas"][0])


def rows(runs: Sequence[Run], cases: Iterable[str] = CASES, ceiling: Callable[[str], float] = bound) -> str:
    """A row for each case, beside its ceiling."""
    head = ["second half of training", "lr λ_max(P⁻¹H)", "the ceiling", "n"]
    found = []
    for case in cases:
        some = chosen(runs, case=case)
        late = interval(fmean(run["sharpness"][POINTS // 2 :]) for run in some)
        found.append([case, late, f"{ceiling(case):.3g}", str(len(some))])
    return table(head, found)


def draw(
    runs: Sequence[Run], axes: Axes, cases: Iterable[str] = CASES, ceiling: Callable[[str], float] = bound
) -> None:
    """The first seed of each case, dotted its ceiling."""
    for i, case in enumerate(cases):
        for run in chosen(runs, case=case, seed=0):
            axes.plot([200 * (j + 1) for j in range(POINTS)], run["sharpness"], color=f"C{i}", label=case)
        axes.axhline(ceiling(case), color=f"C{i}", linewidth=0.8, linestyle=":")
    axes.set(xlabel="step", ylabel="lr λ_max; dotted the ceiling", yscale="log")
    axes.legend()


STRAIGHTENED = Check("straightened", "the probe ahead is a ceiling on sharpness", jobs, straightened, rows, draw)
