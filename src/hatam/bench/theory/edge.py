"""Statements 6 and 7: the edge of stability with the correction, and the radius as a ceiling on sharpness."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import fmean
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from .. import schedules
from ..first_forms import FirstHATAM
from ..tasks import find
from . import formulas
from .check import Check, Job, Run, chosen, interval, table
from .network import TASK, Training, denominators, flat, hessian, modulators

# The edge, by full-batch training ------------------------------------------------------------------------------------

STRAIGHTENED: dict[str, dict[str, Any]] = {
    "AdamW": {"gamma": 0.0},
    "ATAM, γ = 10": {"form": "raw", "modulator": "uniform", "gamma": 10.0},
    "HATAM, raw, γ = 10": {"form": "raw", "gamma": 10.0},
}
FULL_BATCH = 500
POINTS = 20


def edge(optimizer: str, lr: float, seed: int, steps: int = 4000) -> Run:
    """lr λ_max of the preconditioned Hessian, without and with the gain of the correction at an oscillation."""
    options = STRAIGHTENED[optimizer]
    plain: list[float] = []
    effective: list[float] = []
    make = partial(FirstHATAM, betas=(0.9, 0.99), eps=1e-7, weight_decay=0.0, **options)
    for made, params, curvature in full_batch(make, lr, seed, steps):
        h = denominators(made, params)
        s = modulators(h, 3.0) if options.get("modulator") != "uniform" else [torch.ones_like(a) for a in h]
        gain = 1 + options["gamma"] * abs(formulas.transfer(torch.pi, 0.9)) * flat(s)
        plain.append(lr * curvature(flat(h).rsqrt()))
        effective.append(lr * curvature((gain / flat(h)).sqrt()))
    return {"plain": plain, "effective": effective}


Curvature = Callable[[Tensor], float]


def full_batch(
    make: Callable[..., Any], lr: float, seed: int, steps: int
) -> Iterator[tuple[Any, list[nn.Parameter], Curvature]]:
    """Train a small tanh network on all of its data at once, in float64, and stop ``POINTS`` times: the optimizer, the
    parameters, and the largest eigenvalue of D H D for a diagonal D."""
    data = find(TASK).data().train
    x, y = data.x[:FULL_BATCH].double(), nn.functional.one_hot(data.y[:FULL_BATCH], 10).double()
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(40, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 10)).double()
    params = list(model.parameters())
    made = make(params, lr)
    for step in range(1, steps + 1):
        made.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()  # type: ignore[no-untyped-call]
        made.step()
        if step % (steps // POINTS) == 0:
            yield (
                made,
                params,
                lambda scale: hessian(lambda: nn.functional.mse_loss(model(x), y), params, scale).largest_eigenvalue(),
            )


def edge_jobs(seeds: int) -> list[Job]:
    return [
        {"optimizer": name, "lr": lr, "seed": s} for name in STRAIGHTENED for lr in (1e-3, 5e-3) for s in range(seeds)
    ]


def edge_table(runs: Sequence[Run]) -> str:
    rows = []
    for name in STRAIGHTENED:
        for lr in sorted({run["lr"] for run in runs}):
            some = chosen(runs, optimizer=name, lr=lr)
            late = [[fmean(run[key][POINTS // 2 :]) for run in some] for key in ("plain", "effective")]
            rows.append(
                [f"{name}, lr = {lr:g}", *map(interval, late), f"{formulas.edge_of_stability(0.9):.0f}", str(len(some))]
            )
    head = ["second half of training", "lr λ_max(P⁻¹H)", "the same, with the gain 1 + γ S \\|C(π)\\|", "its bound", "n"]
    return table(head, rows)


def draw_edge(runs: Sequence[Run], axes: Axes) -> None:
    for i, name in enumerate(STRAIGHTENED):
        for run in chosen(runs, optimizer=name, lr=1e-3, seed=0):
            at = [200 * (j + 1) for j in range(POINTS)]
            axes.plot(at, run["plain"], ":", color=f"C{i}")
            axes.plot(at, run["effective"], "-", color=f"C{i}", label=name)
    axes.axhline(formulas.edge_of_stability(0.9), color="grey", linewidth=0.8)
    axes.set(xlabel="step", ylabel="lr λ_max: dotted without the gain", ylim=(0, None))
    axes.legend()


EDGE = Check(
    "edge", "the correction lowers the edge of stability in sharp coordinates", edge_jobs, edge, edge_table, draw_edge
)

# The ceiling, in real training ---------------------------------------------------------------------------------------

BETAS = (0.9, 0.95)
SETTINGS = [(g, 0.9) for g in (0.0, 0.01, 0.03, 0.1, 0.15, 0.2, 0.3)] + [(0.1, 0.5), (0.2, 0.97), (0.03, 0.0)]
UNIT = 0.1  # in which AdamW's sharpness is measured: what the ceiling would be to a radius of that γ


def ceiling(gamma: float, beta_c: float, seed: int) -> Run:
    """λ_max(D^½ H D^½) over the ceiling (1 + βc)/(1 − βc) along training, D = diag(ρ S / h); γ = 0 is AdamW."""
    options: dict[str, Any] = {"betas": BETAS, "weight_decay": 0.15, "radius": "relative"}
    options |= {"gamma": gamma, "beta_c": beta_c}
    training = Training(lambda params: FirstHATAM(params, **options), seed)
    ratios = []
    for step in training.run(every=100):
        if step < training.steps:
            radius = displacement_scale(training, gamma)
            ratios.append(training.hessian(radius.sqrt()).largest_eigenvalue() / formulas.ceiling(beta_c))
    return {"ratios": ratios, "accuracy": training.accuracy(), "train_loss": float(training.loss(slice(None)).detach())}


def displacement_scale(training: Training, gamma: float) -> Tensor:
    """ρ S / h, flat: of the displacement that there is, or for γ = 0 of the one that γ = UNIT would make."""
    h = denominators(training.optimizer, training.params)
    s = modulators(h, 1.0)
    faded = min(1.0, schedules.cosine(training.at - 1, training.steps, training.task.warmup) / 0.1)
    parts = []
    for p, a, b in zip(training.params, s, h, strict=True):
        state = training.optimizer.state[p]
        if gamma:
            radius = state["displacement_radius"].item()
        else:
            size = (a * state["exp_avg"] / b).square().mean()
            radius = UNIT * faded * float((p.detach().square().mean() / size).sqrt())
        parts.append(radius * a / b)
    return flat(parts)


def ceiling_jobs(seeds: int) -> list[Job]:
    return [{"gamma": gamma, "beta_c": beta_c, "seed": seed} for gamma, beta_c in SETTINGS for seed in range(seeds)]


def ceiling_table(runs: Sequence[Run]) -> str:
    rows = []
    for gamma, beta_c in SETTINGS:
        some = chosen(runs, gamma=gamma, beta_c=beta_c)
        if some:
            held = [[fmean(run["ratios"][part]) for run in some] for part in (slice(4, 10), slice(10, 16))]
            ends = [interval(run[key] for run in some) for key in ("accuracy", "train_loss")]
            name = f"γ = {gamma:g}, βc = {beta_c:g}" if gamma else f"AdamW, in units of γ = {UNIT:g}"
            rows.append([name, *map(interval, held), *ends, str(len(some))])
    head = [
        "λ_max(D^½ H D^½) over the ceiling",
        "second quarter",
        "third quarter, as lr falls",
        "validation, %",
        "training loss",
        "n",
    ]
    return table(head, rows)


def draw_ceiling(runs: Sequence[Run], axes: Axes) -> None:
    for gamma in (0.0, 0.03, 0.1, 0.2, 0.3):
        some = chosen(runs, gamma=gamma, beta_c=0.9)
        if some:
            curve = [fmean(values) for values in zip(*(run["ratios"] for run in some), strict=True)]
            axes.plot([100 * (i + 1) for i in range(len(curve))], curve, label=f"γ = {gamma:g}" if gamma else "AdamW")
    axes.axhline(1, color="grey", linewidth=0.8)
    axes.set(xlabel="step", ylabel="λ_max(D^½ H D^½) over the ceiling", yscale="log")
    axes.legend()


CEILING = Check("ceiling", "the radius is a ceiling on sharpness", ceiling_jobs, ceiling, ceiling_table, draw_ceiling)
