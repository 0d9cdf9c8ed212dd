"""Statement 8: the published form's feedback has a fixed point below a threshold, and runs away above it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from matplotlib.axes import Axes

from ..first_forms import FirstHATAM
from . import formulas
from .check import Check, Job, Run, chosen, interval, table

COORDINATES, STEPS, RATE = 2000, 6000, 0.999
FORMS = ("published", "raw", "published, cap 3")


def feedback(form: str, gamma: float, seed: int) -> Run:
    """Pure noise, a lognormal scale for each coordinate: S against its fixed point, and how much the steps shrink."""
    rng = torch.Generator().manual_seed(seed)
    sigma = torch.randn(COORDINATES, generator=rng).exp().double()
    param = torch.nn.Parameter(torch.zeros(COORDINATES, dtype=torch.float64))
    cap = 3.0 if "cap" in form else math.inf
    optimizer = FirstHATAM(
        [param], 1e-3, form=form.partition(",")[0], gamma=gamma, beta_c=0.9, modulator_cap=cap, weight_decay=0.0
    )
    for _ in range(STEPS):
        param.grad = sigma * torch.randn(COORDINATES, generator=rng).double()
        optimizer.step()
    h = (optimizer.state[param]["exp_avg_sq"] / (1 - RATE**STEPS)).sqrt()
    mean = float(h.mean())
    s = h / mean
    predicted = torch.tensor([formulas.fixed_point(x / mean, gamma, 0.9) for x in sigma.tolist()], dtype=torch.float64)
    bound = predicted.isfinite()
    return {
        "max_s": float(s.max()),
        "runaways": int((~bound).sum()),
        "error": float((s[bound] / predicted[bound]).log().square().mean().sqrt()),
        "slowed": float((h / sigma)[s.argmax()]),
        "sample": [[float(predicted[i]), float(s[i])] for i in sigma.argsort()[::40].tolist() if bound[i]],
    }


def jobs(seeds: int) -> list[Job]:
    return [{"form": f, "gamma": g, "seed": seed} for f in FORMS for g in (0.1, 0.5, 1.0, 4.0) for seed in range(seeds)]


def summary(runs: Sequence[Run]) -> str:
    rows = []
    for form in FORMS:
        for gamma in sorted({run["gamma"] for run in runs}):
            some = chosen(runs, form=form, gamma=gamma)
            told = [interval(run[key] for run in some) for key in ("max_s", "slowed")]
            theirs = [interval(run["runaways"] for run in some), interval(100 * run["error"] for run in some)]
            theirs = theirs if form == "published" else ["", ""]
            rows.append([f"{form}, γ = {gamma:g}", *told, *theirs, str(len(some))])
    head = [
        "form",
        "largest S",
        "its coordinate's h / σ",
        "coordinates without fixed point",
        "S off its fixed point, %",
        "n",
    ]
    return table(head, rows)


def draw(runs: Sequence[Run], axes: Axes) -> None:
    for gamma in sorted({run["gamma"] for run in runs}):
        points = [point for run in chosen(runs, form="published", gamma=gamma) for point in run["sample"]]
        axes.loglog(*zip(*points, strict=True), ".", label=f"γ = {gamma:g}")
    axes.plot([1e-2, 30], [1e-2, 30], color="grey", linewidth=0.8)
    axes.set(xlabel="S at the fixed point, predicted", ylabel="S after 6,000 steps, published form")
    axes.legend()


FEEDBACK = Check("feedback", "the published form feeds on its correction", jobs, feedback, summary, draw)
