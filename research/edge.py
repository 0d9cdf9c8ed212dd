"""The edge of stability of AdamW, of the published forms and of the late reach, in full-batch training."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from statistics import fmean
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from hatam import HATAM, PublishedHATAM
from hatam.bench.sharpness import Hessian, flat, flat_gradient
from hatam.bench.tasks import find

from . import formulas
from .check import Check, Run, chosen, interval, table
from .networks import TASK
from .quadratics import denominator

FULL_BATCH, POINTS, LR, BETA1 = 500, 20, 1e-3, 0.9
ADAM: dict[str, Any] = {"betas": (BETA1, 0.99), "eps": 1e-7, "weight_decay": 0.0}
GAMMA = 10.0
HORIZONS = {"HATAM, κ = lr": 0.5, "HATAM, κ = 4 lr": 2.0}  # in units of the peak, which is 2 lr
MODULATORS = {"ATAM, γ = 10": "uniform", "published, γ = 10": "relative"}
EDGE = ("AdamW", *MODULATORS, *HORIZONS)


def edge(optimizer: str, seed: int, steps: int = 4000, points: int = POINTS) -> Run:
    """lr λ_max(P⁻¹H) and lr λ_max(G P⁻¹H) along full-batch training of a small tanh network at a constant lr."""
    data = find(TASK).data().train
    x, y = data.x[:FULL_BATCH].double(), nn.functional.one_hot(data.y[:FULL_BATCH], 10).double()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(40, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 10)).double()
    params = list(model.parameters())
    made = edge_optimizer(optimizer, params)
    found: dict[str, list[float]] = {"plain": [], "effective": []}
    for step in range(1, steps + 1):
        made.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()  # type: ignore[no-untyped-call]
        made.step()
        if step % (steps // points) == 0:
            with made.straightened() if isinstance(made, HATAM) else nullcontext(), torch.enable_grad():
                gradient = flat_gradient(nn.functional.mse_loss(model(x), y), params, create_graph=True)
                hs = [denominator(made, p) for p in params]
                gains = torch.cat([gain(optimizer, h) for h in hs])
                for key, g in (("plain", torch.ones_like(gains)), ("effective", gains)):
                    scale = (g / flat(hs)).sqrt()
                    found[key].append(LR * Hessian(gradient, params, scale).largest_eigenvalue())
    return found


def edge_optimizer(name: str, params: list[nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW, a published form, or HATAM with a reach of fixed length: at its horizon, in all tensors."""
    if name in MODULATORS:
        return PublishedHATAM(params, LR, gamma=GAMMA, modulator=MODULATORS[name], **ADAM)
    if name not in HORIZONS:
        return torch.optim.AdamW(params, LR, **ADAM)
    made = HATAM(params, LR, gamma=1e9, horizon=HORIZONS[name], travel=0.0, hidden=True, **ADAM)
    made.param_groups[0]["lr_peak"] = 2 * LR
    return made


def gain(name: str, h: Tensor) -> Tensor:
    """G of a tensor, flat."""
    if name in HORIZONS:
        return torch.full_like(h, formulas.gain_of_reach(2 * LR * HORIZONS[name], LR)).flatten()
    if name not in MODULATORS:
        return torch.ones_like(h).flatten()
    s = h / h.mean() if MODULATORS[name] == "relative" else torch.ones_like(h)
    return 1 + s.flatten() * (formulas.gain_of_correction(GAMMA, 0.9) - 1)


def edge_table(runs: Sequence[Run]) -> str:
    rows = []
    for name in EDGE:
        some = chosen(runs, optimizer=name)
        late = [interval(fmean(run[key][POINTS // 2 :]) for run in some) for key in ("plain", "effective")]
        rows.append([name, *late, f"{formulas.edge(BETA1):.0f}", str(len(some))])
    return table(["second half of training", "lr λ_max(P⁻¹H)", "lr λ_max(G P⁻¹H)", "its bound", "n"], rows)


def draw_edge(runs: Sequence[Run], axes: Axes) -> None:
    for i, name in enumerate(EDGE):
        for run in chosen(runs, optimizer=name, seed=0):
            at = [200 * (j + 1) for j in range(POINTS)]
            axes.plot(at, run["plain"], ":", color=f"C{i}")
            axes.plot(at, run["effective"], "-", color=f"C{i}", label=name)
    axes.axhline(formulas.edge(BETA1), color="grey", linewidth=0.8)
    axes.set(xlabel="step", ylabel="lr λ_max; dotted without the gain G", ylim=(0, None))
    axes.legend()


CHECKS = {"edge": Check([{"optimizer": name} for name in EDGE], edge, edge_table, draw_edge)}
