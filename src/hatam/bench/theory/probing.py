"""Statement 5: straightening is probing, with what radius, and what that does to the trace of the Hessian."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import fmean
from typing import Any

import torch
from matplotlib.axes import Axes
from torch import Tensor

from ..contenders import CONTENDERS, parse
from ..first_forms import FirstHATAM
from ..schedules import cosine
from ..tasks import find
from .check import Check, Job, Run, chosen, interval, table
from .network import SAMPLES, TASK, Training, denominators, hessian, modulators

# The change of coordinates -------------------------------------------------------------------------------------------


def exchange(beta1: float, beta_c: float, seed: int) -> Run:
    """z of the corrected gradient against Adam's iterate on the gradient at the displaced point, h and S frozen.

    On a quadratic, in float64, written out for itself: neither side uses the other's equations.
    """
    rng = torch.Generator().manual_seed(seed)
    factor = torch.randn(20, 20, generator=rng, dtype=torch.float64)
    curvature, target = factor @ factor.T / 20, torch.randn(20, generator=rng, dtype=torch.float64)
    h, s = torch.rand(20, generator=rng).double() + 0.5, torch.rand(20, generator=rng).double() + 0.5
    lr, gamma = 0.05, 4.0
    w, z = torch.zeros(20, dtype=torch.float64), torch.zeros(20, dtype=torch.float64)
    m, e, ae = (torch.zeros_like(w) for _ in range(3))  # of the corrected gradient
    n, f, af = (torch.zeros_like(w) for _ in range(3))  # of the probe: EMA(g), e, EMA(e)
    worst = 0.0
    for _ in range(500):
        g = curvature @ (w - target)
        c = (1 - beta_c) * (g - e)
        e = e + c
        m = beta1 * m + (1 - beta1) * (g + gamma * s * c)
        ae = beta1 * ae + (1 - beta1) * e
        w = w - lr * m / h
        g = curvature @ (z - lr * gamma * s / h * af - target)
        f = f + (1 - beta_c) * (g - f)
        n, af = beta1 * n + (1 - beta1) * g, beta1 * af + (1 - beta1) * f
        z = z - lr * n / h
        worst = max(worst, float((w + lr * gamma * s / h * ae - z).abs().max() / z.abs().max()))
    return {"error": worst}


def exchange_jobs(seeds: int) -> list[Job]:
    return [
        {"beta1": b1, "beta_c": bc, "seed": s} for b1, bc in ((0.9, 0.9), (0.0, 0.9), (0.95, 0.5)) for s in range(seeds)
    ]


def exchange_table(runs: Sequence[Run]) -> str:
    rows = []
    for beta1, beta_c in dict.fromkeys((run["beta1"], run["beta_c"]) for run in runs):
        some = chosen(runs, beta1=beta1, beta_c=beta_c)
        rows.append([f"β1 = {beta1:g}, βc = {beta_c:g}", f"{max(run['error'] for run in some):.0e}", str(len(some))])
    return table(["500 steps", "largest difference of z, relative", "n"], rows)


def draw_exchange(runs: Sequence[Run], axes: Axes) -> None:
    axes.semilogy([run["error"] for run in runs], "o")
    axes.set(xlabel="run", ylabel="largest difference of z, relative")


EXCHANGE = Check(
    "exchange", "correcting the gradient is probing", exchange_jobs, exchange, exchange_table, draw_exchange
)

# The radius over a training -------------------------------------------------------------------------------------------

FORMS: dict[str, dict[str, Any]] = {
    "published": {"form": "published", "gamma": 1.0},
    "raw": {"form": "raw", "gamma": 1.0},
    "decoupled, radius by lr": {"radius": "lr", "modulator_cap": 3.0, "gamma": 1.0},
    "decoupled": {"radius": "relative", "gamma": 0.1},
}


def radius(form: str, seed: int) -> Run:
    """RMS of the displacement over that of the weights, of the whole network, along a training."""
    options = {"betas": (0.9, 0.95), "weight_decay": 0.15, **FORMS[form]}
    training = Training(lambda params: FirstHATAM(params, **options), seed)
    averages = [torch.zeros_like(p) for p in training.params]
    sizes, held = [], []
    while training.at < training.steps:
        training.step()
        states = [training.optimizer.state[p] for p in training.params]
        if training.optimizer.param_groups[0]["form"] == "decoupled":
            before = [p.detach().clone() for p in training.params]
            with training.optimizer.straightened():  # type: ignore[attr-defined]
                moved = [p.detach() - q for p, q in zip(training.params, before, strict=True)]
                ratio = [float(d.norm() / p.detach().norm()) for d, p in zip(moved, training.params, strict=True)]
            held.append(max(ratio) / options["gamma"])
        else:
            averages = [0.9 * a + 0.1 * state["exp_avg_grad"] for a, state in zip(averages, states, strict=True)]
            h = denominators(training.optimizer, training.params)
            s = modulators(h, 3.0 if form == "raw" else math.inf)
            lr = training.optimizer.param_groups[0]["lr"]
            moved = [lr * options["gamma"] * a * b / c for a, b, c in zip(s, averages, h, strict=True)]
        if training.at % 100 == 0:
            sizes.append(size(moved) / size(p.detach() for p in training.params))
    return {"sizes": sizes, "most": max(held) if form == "decoupled" else None}


def size(tensors: Any) -> float:
    return math.sqrt(sum(float(x.square().sum()) for x in tensors))


def radius_jobs(seeds: int) -> list[Job]:
    return [{"form": form, "seed": seed} for form in FORMS for seed in range(seeds)]


def radius_table(runs: Sequence[Run]) -> str:
    rows = []
    for form in FORMS:
        some = chosen(runs, form=form)
        at = [[run["sizes"][i] for run in some] for i in (4, 9, 14, 18)]
        most = interval(run["most"] for run in some) if form == "decoupled" else ""
        rows.append([f"{form}, γ = {FORMS[form]['gamma']:g}", *map(interval, at), most, str(len(some))])
    head = ["‖d‖ / ‖w‖ at step", "500", "1,000", "1,500", "1,900", "largest ‖d‖ / (γ‖z‖) of a tensor", "n"]
    return table(head, rows)


def draw_radius(runs: Sequence[Run], axes: Axes) -> None:
    for form in FORMS:
        for run in chosen(runs, form=form)[:1]:
            axes.semilogy([100 * (i + 1) for i in range(len(run["sizes"]))], run["sizes"], label=form)
    axes.set(xlabel="step", ylabel="‖d‖ / ‖w‖")
    axes.legend()


RADIUS = Check("radius", "the radius dies with lr or outlives it", radius_jobs, radius, radius_table, draw_radius)

# The trace at equal training loss ------------------------------------------------------------------------------------

PEERS = ("adamw", "atam-decoupled:gamma=0.12", "msam", "sam", "hatam-relative:gamma=0.12")
LOSSES = (0.5, 0.25, 0.125)
MATVECS = 30


def trace(contender: str, seed: int, steps: int = 2000, points: int = 20) -> Run:
    """Training loss and trace of the Hessian at the point that the contender is evaluated at, along its training."""
    task = find(TASK)
    data, (entry, options) = task.data(), parse(contender, TASK)
    torch.manual_seed(seed)
    trainer = CONTENDERS[entry.name].train(task.model(), task.loss, options)
    params = list(trainer.model.parameters())
    rng = torch.Generator().manual_seed(seed)
    x, y = data.train.x[:SAMPLES], data.train.y[:SAMPLES]

    def loss() -> Tensor:
        return task.loss(trainer.model(x), y).mean()

    curve = []
    for step in range(steps):
        for group in trainer.optimizer.param_groups:
            group["lr"] = options["lr"] * cosine(step, steps, task.warmup)
        batch = torch.randint(len(data.train.y), (task.batch_size,), generator=rng)
        trainer.step(data.train.x[batch], data.train.y[batch])
        if (step + 1) % (steps // points) == 0:
            with trainer.evaluation(), torch.random.fork_rng():
                torch.manual_seed(0)
                curve.append([loss().item(), hessian(loss, params).trace()])
    return {"curve": curve}


def trace_jobs(seeds: int) -> list[Job]:
    return [{"contender": contender, "seed": seed} for contender in PEERS for seed in range(seeds)]


def at_loss(curve: Sequence[Sequence[float]], level: float) -> float | None:
    """The trace where the training loss first passes a level, between the points beside it; None if it does not."""
    for (high, before), (low, after) in pairwise(curve):
        if high > level >= low:
            share = math.log(high / level) / math.log(high / low)
            return before + share * (after - before)
    return None


def trace_table(runs: Sequence[Run]) -> str:
    rows = []
    for contender in PEERS:
        some = chosen(runs, contender=contender)
        told = []
        for level in LOSSES:
            values = [x for run in some if (x := at_loss(run["curve"], level)) is not None]
            told.append(f"{interval(values)} ({len(values)})" if values else "not reached")
        ends = [interval(run["curve"][-1][i] for run in some) for i in (0, 1)]
        rows.append([contender, *told, *ends, str(len(some))])
    head = [
        "trace of H at training loss",
        *(f"{level:g} (n)" for level in LOSSES),
        "loss at the end",
        "trace at the end",
        "n",
    ]
    return table(head, rows)


def draw_trace(runs: Sequence[Run], axes: Axes) -> None:
    for contender in PEERS:
        some = chosen(runs, contender=contender)
        points = [
            [fmean(at[i] for at in points) for points in zip(*(run["curve"] for run in some), strict=True)]
            for i in (0, 1)
        ]
        axes.loglog(*points, ".-", label=contender)
    axes.set(xlabel="training loss", ylabel="trace of the Hessian")
    axes.invert_xaxis()
    axes.legend()


TRACE = Check("trace", "at equal training loss a probe's trace is lower", trace_jobs, trace, trace_table, draw_trace)
