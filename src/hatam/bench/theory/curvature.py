"""Statements 3 and 4: how much of c is curvature times movement, and how well sqrt(v) ranks curvature."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from statistics import fmean
from typing import Any, cast

import torch
from matplotlib.axes import Axes
from scipy import stats
from torch import Tensor
from torch.func import functional_call, grad, vmap

from .check import Check, Job, Run, chosen, interval, table
from .network import SAMPLES, Training, denominators, flat

BATCHES = (32, 128, 512, 4000)
RATE = 0.9
LAYERS = ("first", "second", "last")


def adamw(params: Any) -> torch.optim.AdamW:
    """The trajectory on which both are looked at: AdamW's."""
    return torch.optim.AdamW(params, betas=(0.9, 0.95), weight_decay=0.15)


def quasi_newton(batch: int, seed: int) -> Run:
    """cos(c, H EMA(s)) per layer along AdamW's training; H is the exact Hessian of the whole training data.

    EMA(s) is the movement smoothed as c is, so that they would be the same if H stood still and gradients had no noise.
    """
    training = Training(adamw, seed, steps=1000, batch=batch)
    e = [torch.zeros_like(p) for p in training.params]
    s, before = [torch.zeros_like(p) for p in training.params], [p.detach().clone() for p in training.params]
    cosines = []
    while training.at < training.steps - 1:
        at = [p.detach().clone() for p in training.params]  # where this step takes its gradient
        s = [RATE * a + (1 - RATE) * (p - q) for a, p, q in zip(s, at, before, strict=True)]
        look = training.at % 100 == 99
        product = training.hessian(chosen=slice(None)).times(flat(s)) if look else None
        training.step()
        grads = [p.grad for p in training.params if p.grad is not None]
        c = [(1 - RATE) * (g - a) for g, a in zip(grads, e, strict=True)]
        e = [a + b for a, b in zip(e, c, strict=True)]
        before = at
        if product is not None:
            parts = torch.split(product, [p.numel() for p in training.params])
            layers = [(flat(c[i : i + 2]), flat(parts[i : i + 2])) for i in range(0, len(c), 2)]
            cosines.append([cosine(a, b) for a, b in [(flat(c), product), *layers]])
    return {"cosines": cosines}


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a, b, dim=0))


def quasi_newton_jobs(seeds: int) -> list[Job]:
    return [{"batch": batch, "seed": seed} for batch in BATCHES for seed in range(seeds)]


def quasi_newton_table(runs: Sequence[Run]) -> str:
    rows = []
    for batch in BATCHES:
        some = chosen(runs, batch=batch)
        means = [[fmean(at[i] for at in run["cosines"]) for run in some] for i in range(1 + len(LAYERS))]
        noise = [fmean(1 - at[0] ** 2 for at in run["cosines"]) for run in some]
        name = "all 4,000 samples" if batch == BATCHES[-1] else str(batch)
        rows.append([name, *map(interval, means), interval(noise), str(len(some))])
    head = [
        "batch",
        "cos(c, H EMA(s))",
        *(f"{layer} layer" for layer in LAYERS),
        "share of \\|c\\|² that it leaves",
        "n",
    ]
    return table(head, rows)


def draw_quasi_newton(runs: Sequence[Run], axes: Axes) -> None:
    for batch in BATCHES:
        some = chosen(runs, batch=batch)
        curve = [fmean(at[0] for at in points) for points in zip(*(run["cosines"] for run in some), strict=True)]
        axes.plot([100 * (i + 1) for i in range(len(curve))], curve, ".-", label=f"batch {batch}")
    axes.set(xlabel="step", ylabel="cos(c, H EMA(s))")
    axes.legend()


QUASI_NEWTON = Check(
    "quasi-newton", "c is curvature times movement, and noise", quasi_newton_jobs, quasi_newton, quasi_newton_table,
    draw_quasi_newton,
)  # fmt: skip

PROBES = 200  # of the Hessian's diagonal, each one product


def proxy(seed: int) -> Run:
    """Spearman's rank correlation of sqrt(v) with the diagonals of Hessian and Fisher matrix, along a training."""
    training = Training(adamw, seed)
    ranks = []
    for step in training.run(every=250):
        v = [h.flatten() for h in denominators(training.optimizer, training.params)]
        sizes = [p.numel() for p in training.params]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            diagonal = hessian_diagonal(training)
            fisher = fisher_diagonal(training)
        matrices = [i for i, p in enumerate(training.params) if p.dim() == 2]
        for_each = [
            [fmean(rank(v[i], torch.split(x, sizes)[i]) for i in matrices) for x in (diagonal, diagonal.abs(), fisher)],
            [rank(flat(v), x) for x in (diagonal, diagonal.abs(), fisher)],
        ]
        ranks.append({"step": step, "within": for_each[0], "over all": for_each[1]})
    return {"ranks": ranks}


def hessian_diagonal(training: Training) -> Tensor:
    """By Hutchinson's estimator."""
    with warnings.catch_warnings():
        # Dependencies of curvlinops still use the deprecated torch.jit.script.
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
        from curvlinops import hutchinson_diag
    return cast(Tensor, hutchinson_diag(training.hessian(), num_matvecs=PROBES))


def rank(a: Tensor, b: Tensor) -> float:
    return float(stats.spearmanr(a.numpy(), b.numpy()).statistic)


def fisher_diagonal(training: Training) -> Tensor:
    """The mean square of the gradients of single samples, with labels drawn from the model's own predictions."""
    x = training.data.train.x[:SAMPLES]
    with torch.no_grad():
        labels = torch.distributions.Categorical(logits=training.model(x)).sample()  # type: ignore[no-untyped-call]
    names = [name for name, _ in training.model.named_parameters()]
    values = dict(zip(names, (p.detach() for p in training.params), strict=True))

    def loss(params: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        outputs = functional_call(training.model, params, (one[None],))
        return training.task.loss(outputs, label[None]).mean()

    squares = [torch.zeros_like(p) for p in training.params]
    for xs, ys in zip(torch.split(x, 100), torch.split(labels, 100), strict=True):
        grads = vmap(grad(loss), in_dims=(None, 0, 0))(values, xs, ys)
        squares = [a + grads[name].square().sum(0) for a, name in zip(squares, names, strict=True)]
    return flat(squares) / len(x)


def proxy_jobs(seeds: int) -> list[Job]:
    return [{"seed": seed} for seed in range(seeds)]


def proxy_table(runs: Sequence[Run]) -> str:
    rows = []
    for i, at in enumerate(runs[0]["ranks"]):
        told = [
            interval(run["ranks"][i][where][j] for run in runs) for where in ("within", "over all") for j in (0, 1, 2)
        ]
        rows.append([f"step {at['step']}", *told, str(len(runs))])
    head = [f"{of}, {where}" for where in ("in a matrix", "over all") for of in ("diag H", "\\|diag H\\|", "Fisher")]
    return table(["rank correlation of sqrt(v)", *head, "n"], rows)


def draw_proxy(runs: Sequence[Run], axes: Axes) -> None:
    steps = [at["step"] for at in runs[0]["ranks"]]
    for j, name in ((0, "diagonal of H"), (2, "Fisher")):
        for where, style in (("within", "-"), ("over all", ":")):
            curve = [fmean(run["ranks"][i][where][j] for run in runs) for i in range(len(steps))]
            axes.plot(steps, curve, style, color=f"C{j}", label=f"{name}, {'in a matrix' if style == '-' else where}")
    axes.set(xlabel="step", ylabel="Spearman's ρ with sqrt(v)", ylim=(0, 1))
    axes.legend()


PROXY = Check("proxy", "sqrt(v) ranks curvature", proxy_jobs, proxy, proxy_table, draw_proxy)
