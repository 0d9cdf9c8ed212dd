"""Statement 9: the ceiling on sharpness of AdamW with a reach."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from statistics import fmean
from typing import Any

import torch
from matplotlib.axes import Axes

from . import formulas
from .check import Check, Job, Run, chosen, interval, table
from .edge import POINTS, full_batch
from .network import denominators, flat

BETA1 = 0.9
CASES = {"AdamW": 0.0, "κ = lr": 1.0, "κ = 4 lr": 4.0}
"""κ in units of lr."""


class FixedReach(torch.optim.AdamW):
    """AdamW whose gradient is taken at z − κ m / h, with κ a fixed multiple of lr, in all tensors."""

    def __init__(self, params: Any, lr: float, *, multiple: float) -> None:
        super().__init__(params, lr, betas=(BETA1, 0.99), eps=1e-7, weight_decay=0.0)
        self.kappa = multiple * lr

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of z, undone and redone about it."""
        self.move(self.kappa)
        super().step()
        self.move(-self.kappa)

    @torch.no_grad()
    def move(self, length: float) -> None:
        """Along m / h of the last step."""
        params = [p for p in self.param_groups[0]["params"] if self.state[p]]
        for p, h in zip(params, denominators(self, params), strict=True):
            p.addcdiv_(self.state[p]["exp_avg"], h, value=length)


def reach(case: str, lr: float, seed: int, steps: int = 4000) -> Run:
    """lr λ_max(P⁻¹H) at z along full-batch training at a constant lr."""
    found = []
    for made, params, curvature in full_batch(partial(FixedReach, multiple=CASES[case]), lr, seed, steps):
        made.move(made.kappa)
        found.append(lr * curvature(flat(denominators(made, params)).rsqrt()))
        made.move(-made.kappa)
    return {"sharpness": found}


def jobs(seeds: int) -> list[Job]:
    return [{"case": case, "lr": 1e-3, "seed": seed} for case in CASES for seed in range(seeds)]


def bound(case: str) -> float:
    """The ceiling of a case, times lr."""
    return formulas.reach_ceiling(1.0, BETA1, CASES[case])


def rows(runs: Sequence[Run]) -> str:
    head = ["second half of training", "lr λ_max(P⁻¹H)", "the ceiling", "n"]
    found = []
    for case in CASES:
        some = chosen(runs, case=case)
        late = interval(fmean(run["sharpness"][POINTS // 2 :]) for run in some)
        found.append([case, late, f"{bound(case):.3g}", str(len(some))])
    return table(head, found)


def draw(runs: Sequence[Run], axes: Axes) -> None:
    for i, case in enumerate(CASES):
        for run in chosen(runs, case=case, seed=0):
            axes.plot([200 * (j + 1) for j in range(POINTS)], run["sharpness"], color=f"C{i}", label=case)
        axes.axhline(bound(case), color=f"C{i}", linewidth=0.8, linestyle=":")
    axes.set(xlabel="step", ylabel="lr λ_max; dotted the ceiling", yscale="log")
    axes.legend()


REACH = Check("reach", "the reach is a ceiling on sharpness", jobs, reach, rows, draw)
