"""Statements 1 and 2: the identity, and the damping of a quadratic's oscillations: λ², and λ without the modulator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from scipy import stats
from torch import Tensor

from ..first_forms import FirstHATAM, denominator
from . import formulas
from .check import Check, Job, Run, chosen, interval, table

# Identity -----------------------------------------------------------------------------------------------------------


def identity(beta_c: float, seed: int) -> Run:
    """The largest difference of the two ways to c."""
    rng = torch.Generator().manual_seed(seed)
    gradients = torch.randn(1000, 100, generator=rng, dtype=torch.float64) * torch.randn(100, generator=rng).exp()
    c = formulas.bend(gradients, beta_c)
    return {"bend_error": float((c - formulas.bend_in_one_buffer(gradients, beta_c)).abs().max() / c.abs().max())}


def identity_jobs(seeds: int) -> list[Job]:
    return [{"beta_c": beta_c, "seed": seed} for beta_c in (0.0, 0.5, 0.9, 0.99) for seed in range(seeds)]


def identity_table(runs: Sequence[Run]) -> str:
    rows = []
    for beta_c in dict.fromkeys(run["beta_c"] for run in runs):
        some = chosen(runs, beta_c=beta_c)
        rows.append([f"{beta_c:g}", f"{max(run['bend_error'] for run in some):.0e}", str(len(some))])
    return table(["βc", "c in one buffer, relative error", "n"], rows)


def draw_identity(runs: Sequence[Run], axes: Axes) -> None:
    """Of an oscillation that turns faster and faster, what the correction sees."""
    omega = [math.pi * i / 200 for i in range(201)]
    for beta_c in (0.5, 0.9, 0.99):
        axes.plot(omega, [abs(formulas.transfer(w, beta_c)) for w in omega], label=f"βc = {beta_c:g}")
    axes.set(
        xlabel="frequency ω of the gradient, per step",
        ylabel="|C|, gain of the correction",
        yscale="log",
        ylim=(1e-3, 1.5),
    )
    axes.legend()


IDENTITY = Check(
    "identity", "c needs one buffer, and the mean of h no pass", identity_jobs, identity, identity_table, draw_identity
)

# Damping ------------------------------------------------------------------------------------------------------------

LAMBDAS = 41
COPIES = 5
USUAL: dict[str, Any] = {
    "steps": 15000,
    "window": 3000,
    "noise": 0.0,
    "start": 0.1,
    "cap": math.inf,
    "lr": 1e-3,
    "rotated": False,
    "modulator": "relative",
}
CASES: dict[str, dict[str, Any]] = {
    "oscillating": {},
    "oscillating, S = 1": {"modulator": "uniform"},
    "oscillating, lr × 10": {"lr": 1e-2},
    "cap 0.1 reached by most": {"cap": 0.1},
    "noise 1e-3, above the gradients of flat coordinates": {"noise": 1e-3},
    "noise 1, above all gradients": {"noise": 1.0},
    "on the way, before any oscillation": {"steps": 1000, "window": 500, "start": 10.0},
    "rotated: the Hessian is not diagonal": {"rotated": True},
}


def damping(case: str, seed: int) -> Run:
    """The slope of log k against log λ over four decades, k from regressing the correction on the velocity.

    Per coordinate k = Σ q u / Σ u²: q = γ S c is the correction, u the velocity, EMA(w_{t−1} − w_{t−2}).
    """
    o = USUAL | CASES[case]
    rng = torch.Generator().manual_seed(seed)
    lam = torch.logspace(-2, 2, LAMBDAS, dtype=torch.float64)
    basis = torch.eye(LAMBDAS, dtype=torch.float64)
    if o["rotated"]:
        basis = torch.linalg.qr(torch.randn(LAMBDAS, LAMBDAS, generator=rng, dtype=torch.float64))[0]
    hessian = basis @ torch.diag(lam) @ basis.T
    param = torch.nn.Parameter(o["start"] * torch.randn(COPIES, LAMBDAS, generator=rng, dtype=torch.float64))
    cap = {} if o["modulator"] == "uniform" else {"modulator_cap": o["cap"]}
    options = {
        "weight_decay": 0.0,
        "eps": 1e-12,
        "form": "raw",
        "gamma": 1.0,
        "beta_c": 0.9,
        "modulator": o["modulator"],
    }
    optimizer = FirstHATAM([param], o["lr"], **options, **cap)
    u, before = torch.zeros_like(param), param.detach().clone()
    qu, uu = torch.zeros_like(u), torch.zeros_like(u)
    for step in range(1, o["steps"] + 1):
        w = param.detach()
        noise = o["noise"] * torch.randn(w.shape, generator=rng, dtype=w.dtype) if o["noise"] else 0.0
        param.grad = w @ hessian + noise
        u = 0.9 * u + 0.1 * (w - before)
        if step > o["steps"] - o["window"]:
            q, along = correction(optimizer, param) @ basis, u @ basis
            qu, uu = qu + q * along, uu + along.square()
        before = w.clone()
        optimizer.step()
    k = (qu / uu.clamp(min=1e-300)).flatten()
    moves = uu.flatten() > 1e-200  # some come to rest, to the last bit
    points = {"lambda": lam.tolist(), "k": k.view(COPIES, -1).median(0).values.tolist()}
    return {**fit_slope(lam.repeat(COPIES)[moves], k[moves]), **points}


def fit_slope(lam: Tensor, k: Tensor) -> Run:
    """Of log k against log λ, half of its 95% interval, and the share of k above 0, which alone have a logarithm."""
    damped = k > 0
    x, y = lam[damped].log10(), k[damped].log10()
    fit = stats.linregress(x.numpy(), y.numpy())
    half = fit.stderr * stats.t.ppf(0.975, len(x) - 2)
    return {"slope": float(fit.slope), "half": float(half), "damped": float(damped.double().mean())}


def correction(optimizer: FirstHATAM, param: Tensor) -> Tensor:
    """γ S c of the step that is about to be taken, from the state as the optimizer has it."""
    state, group = optimizer.state[param], optimizer.param_groups[0]
    if not state or param.grad is None:
        return torch.zeros_like(param)
    bend: Tensor = (1 - group["beta_c"]) * (param.grad - state["exp_avg_grad"])
    if group["uniform"]:
        return float(group["gamma"]) * bend
    h = denominator(state, group)
    s: Tensor = (h / (h.mean() + group["eps"])).clamp(max=group["cap"])
    return float(group["gamma"]) * s * bend


def damping_jobs(seeds: int) -> list[Job]:
    return [{"case": case, "seed": seed} for case in CASES for seed in range(seeds)]


def damping_table(runs: Sequence[Run]) -> str:
    rows = []
    for case in CASES:
        some = chosen(runs, case=case)
        if some:
            damped = 100 * sum(run["damped"] for run in some) / len(some)
            slope = interval(run["slope"] for run in some) if damped > 50 else "none"
            rows.append([case, slope, f"{damped:.0f}%", str(len(some))])
    return table(["regime", "slope of log k", "k > 0 in", "n"], rows)


def draw_damping(runs: Sequence[Run], axes: Axes) -> None:
    for case in list(CASES)[:2] + list(CASES)[3:5]:
        for run in chosen(runs, case=case)[:1]:
            axes.loglog(run["lambda"], [abs(k) for k in run["k"]], ".-", label=f"{case}: slope {run['slope']:.2f}")
    axes.set(xlabel="curvature λ of the coordinate", ylabel="damping coefficient k")
    axes.legend(fontsize="small")


DAMPING = Check("damping", "the correction damps by λ²", damping_jobs, damping, damping_table, draw_damping)
