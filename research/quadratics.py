"""The published form on quadratics and in noise: two identities, damping by λ², and the feedback of S on itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.axes import Axes
from scipy import stats
from torch import Tensor

from hatam import PublishedHATAM

from . import formulas
from .check import Check, Run, chosen, interval, table

# Identities -----------------------------------------------------------------------------------------------------------


def identity(claim: str, beta1: float, beta_c: float, seed: int) -> Run:
    """The largest difference of the two sides, relative."""
    rng = torch.Generator().manual_seed(seed)
    if claim == "straightening is probing":
        return {"error": exchange(beta1, beta_c, rng)}
    gradients = torch.randn(1000, 100, generator=rng, dtype=torch.float64) * torch.randn(100, generator=rng).exp()
    c = formulas.bend(gradients, beta_c)
    return {"error": float((c - formulas.bend_in_one_buffer(gradients, beta_c)).abs().max() / c.abs().max())}


def exchange(beta1: float, beta_c: float, rng: torch.Generator) -> float:
    """z of the corrected gradient against Adam's iterate on the gradient at the displaced point, h and S frozen.

    On a quadratic, in float64, written out for itself: neither side uses the other's equations.
    """
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
    return worst


IDENTITIES = [{"claim": "c in one buffer", "beta1": 0.9, "beta_c": beta_c} for beta_c in (0.5, 0.9, 0.99)] + [
    {"claim": "straightening is probing", "beta1": beta1, "beta_c": beta_c}
    for beta1, beta_c in ((0.9, 0.9), (0.0, 0.9), (0.95, 0.5))
]


def identity_table(runs: Sequence[Run]) -> str:
    rows = []
    for claim in dict.fromkeys(case["claim"] for case in IDENTITIES):
        some = chosen(runs, claim=claim)
        rows.append([claim, f"{max(run['error'] for run in some):.0e}", str(len(some))])
    return table(["identity", "largest difference, relative", "n"], rows)


# Damping --------------------------------------------------------------------------------------------------------------

LAMBDAS, COPIES = 41, 5
USUAL: dict[str, Any] = {"steps": 15000, "window": 3000, "noise": 0.0, "start": 0.1, "lr": 1e-3, "rotated": False}
REGIMES: dict[str, dict[str, Any]] = {
    "oscillating": {},
    "oscillating, S = 1": {"modulator": "uniform"},
    "noise 1e-3, above the gradients of flat coordinates": {"noise": 1e-3},
    "noise 1, above all gradients": {"noise": 1.0},
    "on the way, before any oscillation": {"steps": 1000, "window": 500, "start": 10.0},
    "rotated: the Hessian is not diagonal": {"rotated": True},
}


def damping(regime: str, seed: int, **changed: Any) -> Run:
    """The slope of log k against log λ over four decades, k from regressing the correction on the velocity.

    Per coordinate k = Σ q u / Σ u²: q = γ S c is the correction, u the velocity, EMA(w_{t−1} − w_{t−2}).
    """
    o = {**USUAL, **REGIMES[regime], **changed}
    rng = torch.Generator().manual_seed(seed)
    lam = torch.logspace(-2, 2, LAMBDAS, dtype=torch.float64)
    basis = torch.eye(LAMBDAS, dtype=torch.float64)
    if o["rotated"]:
        basis = torch.linalg.qr(torch.randn(LAMBDAS, LAMBDAS, generator=rng, dtype=torch.float64))[0]
    hessian = basis @ torch.diag(lam) @ basis.T
    param = torch.nn.Parameter(o["start"] * torch.randn(COPIES, LAMBDAS, generator=rng, dtype=torch.float64))
    modulator = o.get("modulator", "relative")
    optimizer = PublishedHATAM([param], o["lr"], eps=1e-12, weight_decay=0.0, gamma=1.0, modulator=modulator)
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
    """Of log k against log λ, and the share of k above 0, which alone have a logarithm."""
    damped = k > 0
    fit = stats.linregress(lam[damped].log10().numpy(), k[damped].log10().numpy())
    return {"slope": float(fit.slope), "damped": float(damped.double().mean())}


def correction(optimizer: PublishedHATAM, param: Tensor) -> Tensor:
    """γ S c of the step that is about to be taken, from the state as the optimizer has it."""
    state, o = optimizer.state[param], optimizer.param_groups[0]
    if not state or param.grad is None:
        return torch.zeros_like(param)
    bend: Tensor = (1 - o["beta_c"]) * (param.grad - state["exp_avg_grad"])
    if o["modulator"] == "relative":
        h = denominator(optimizer, param)
        bend = bend * h / (h.mean() + o["eps"])
    return float(o["gamma"]) * bend


def denominator(optimizer: torch.optim.Optimizer, param: Tensor) -> Tensor:
    """h of a tensor, from the state of any of the family."""
    state, o = optimizer.state[param], optimizer.param_groups[0]
    h: Tensor = (state["exp_avg_sq"] / (1 - o["betas"][1] ** float(state["step"]))).sqrt() + o["eps"]
    return h


def damping_table(runs: Sequence[Run]) -> str:
    rows = []
    for regime in REGIMES:
        some = chosen(runs, regime=regime)
        damped = 100 * sum(run["damped"] for run in some) / len(some)
        slope = interval(run["slope"] for run in some) if damped > 50 else "none"
        rows.append([regime, slope, f"{damped:.0f}%", str(len(some))])
    return table(["regime", "slope of log k", "k > 0 in", "n"], rows)


def draw_damping(runs: Sequence[Run], axes: Axes) -> None:
    for regime in (name for name in REGIMES if "rotated" not in name):
        for run in chosen(runs, regime=regime)[:1]:
            axes.loglog(run["lambda"], [abs(k) for k in run["k"]], ".-", label=f"{regime}: slope {run['slope']:.2f}")
    axes.set(xlabel="curvature λ of the coordinate", ylabel="damping coefficient k")
    axes.legend(fontsize="small")


# Feedback -------------------------------------------------------------------------------------------------------------

COORDINATES = 2000


def feedback(gamma: float, seed: int, steps: int = 6000) -> Run:
    """Pure noise, a lognormal scale for each coordinate: S against its fixed point, and how much the steps shrink."""
    rng = torch.Generator().manual_seed(seed)
    sigma = torch.randn(COORDINATES, generator=rng).exp().double()
    param = torch.nn.Parameter(torch.zeros(COORDINATES, dtype=torch.float64))
    optimizer = PublishedHATAM([param], 1e-3, gamma=gamma, weight_decay=0.0)
    for _ in range(steps):
        param.grad = sigma * torch.randn(COORDINATES, generator=rng).double()
        optimizer.step()
    h = denominator(optimizer, param)
    mean = float(h.mean())
    s = h / mean
    predicted = torch.tensor([formulas.fixed_point(x / mean, gamma, 0.9) for x in sigma.tolist()], dtype=torch.float64)
    bound = predicted.isfinite()
    return {
        "max_s": float(s.max()),
        "runaways": int((~bound).sum()),
        "error": float((s[bound] / predicted[bound]).log().square().mean().sqrt()),
        "slowed": float((h / sigma)[s.argmax()]),
        "sample": [[float(predicted[i]), float(s[i])] for i in sigma.argsort()[::80].tolist() if bound[i]],
    }


def feedback_table(runs: Sequence[Run]) -> str:
    rows = []
    for case in FEEDBACK.cases:
        some = chosen(runs, **case)
        told = [interval(run[key] for run in some) for key in ("max_s", "slowed", "runaways")]
        error = interval(100 * run["error"] for run in some)
        rows.append([f"γ = {case['gamma']:g}", *told, error, str(len(some))])
    head = ["published form", "largest S", "its coordinate's h / σ", "coordinates without fixed point"]
    return table([*head, "S off its fixed point, %", "n"], rows)


def draw_feedback(runs: Sequence[Run], axes: Axes) -> None:
    for case in FEEDBACK.cases:
        points = [point for run in chosen(runs, **case) for point in run["sample"]]
        axes.loglog(*zip(*points, strict=True), ".", label=f"γ = {case['gamma']:g}")
    axes.plot([1e-2, 30], [1e-2, 30], color="grey", linewidth=0.8)
    axes.set(xlabel="S at the fixed point, predicted", ylabel="S after 6,000 steps")
    axes.legend()


FEEDBACK = Check([{"gamma": gamma} for gamma in (0.1, 0.5, 1.0, 4.0)], feedback, feedback_table, draw_feedback)
CHECKS = {
    "identities": Check(IDENTITIES, identity, identity_table),
    "damping": Check([{"regime": name} for name in REGIMES], damping, damping_table, draw_damping),
    "feedback": FEEDBACK,
}
