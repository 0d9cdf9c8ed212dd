"""A small network on real data: how much of c is curvature, what sqrt(v) ranks, and flatness at equal training loss."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from itertools import pairwise
from statistics import fmean
from typing import Any, cast

import torch
from matplotlib.axes import Axes
from scipy import stats
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from hatam import HATAM, PublishedHATAM
from hatam.bench import schedules
from hatam.bench.sharpness import Hessian, flat, flat_gradient
from hatam.bench.tasks import find

from .check import Check, Run, chosen, interval, table
from .quadratics import denominator

TASK = "mnist1d-mlp-plain"
SAMPLES = 1000  # of the training data, on which curvature is measured
OPTIONS: dict[str, Any] = {"betas": (0.9, 0.95), "weight_decay": 0.15}
CONTENDERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "AdamW": lambda named: torch.optim.AdamW(named, **OPTIONS),
    "SAM": lambda named: torch.optim.AdamW(named, **{**OPTIONS, "betas": (0.0, 0.95)}),
    "HATAM": lambda named: HATAM(named, **OPTIONS),
    "HATAM, horizon 8": lambda named: HATAM(named, horizon=8.0, **OPTIONS),
    "published, γ = 1": lambda named: PublishedHATAM(named, **OPTIONS),
}
SAM_RHO = 0.5  # with β1 = 0, its better setting here


class Training:
    """A network of the task under one of the contenders, a mini-batch a step, warm-up and cosine.

    Args:
        contender: a key of CONTENDERS.
        seed: of the network and of its batches.
        steps: until lr is 0.
        batch: samples in a mini-batch.
    """

    def __init__(self, contender: str, seed: int, steps: int = 2000, batch: int = 128) -> None:
        self.task = find(TASK)
        self.data = self.task.data()
        torch.manual_seed(seed)
        self.model = self.task.model()
        self.params = list(self.model.parameters())
        self.contender, self.optimizer = contender, CONTENDERS[contender](self.model.named_parameters())
        self.steps, self.batch, self.at = steps, batch, 0
        self.rng = torch.Generator().manual_seed(seed)

    def run(self, every: int) -> Iterator[int]:
        """Train, and stop now and then after a step: its number."""
        while self.at < self.steps:
            self.step()
            if self.at % every == 0:
                yield self.at

    def step(self) -> None:
        """One."""
        for group in self.optimizer.param_groups:
            group["lr"] = 0.03 * schedules.cosine(self.at, self.steps, self.task.warmup)
        samples = len(self.data.train.y)
        picked: Tensor | slice = slice(None)  # all of them at once: the gradient without noise
        if self.batch < samples:
            picked = torch.randint(samples, (self.batch,), generator=self.rng)
        self.gradient(picked)
        if self.contender == "SAM":
            start = [p.detach().clone() for p in self.params]
            norm = math.sqrt(sum(float(p.grad.square().sum()) for p in self.params if p.grad is not None))
            with torch.no_grad():
                for p in self.params:
                    p.add_(p.grad, alpha=SAM_RHO / max(norm, 1e-12))
            self.gradient(picked)
            with torch.no_grad():
                for p, w in zip(self.params, start, strict=True):
                    p.copy_(w)
        self.optimizer.step()
        self.at += 1

    def gradient(self, picked: Tensor | slice) -> None:
        self.optimizer.zero_grad()
        self.loss(picked).backward()  # type: ignore[no-untyped-call]

    def evaluation(self) -> Any:
        """Inside, the weights are those to evaluate."""
        return self.optimizer.straightened() if isinstance(self.optimizer, HATAM) else nullcontext()

    def loss(self, picked: Tensor | slice = slice(SAMPLES)) -> Tensor:
        """The mean over some of the training samples."""
        train = self.data.train
        return self.task.loss(self.model(train.x[picked]), train.y[picked]).mean()

    def hessian(self, picked: slice = slice(SAMPLES)) -> Hessian:
        """Of that loss at the present weights."""
        with torch.enable_grad():
            return Hessian(flat_gradient(self.loss(picked), self.params, create_graph=True), self.params)

    def accuracy(self) -> float:
        """In % of the validation data."""
        with self.evaluation(), torch.no_grad():
            outputs = self.model(self.data.validation.x)
            return float(self.task.metric(outputs, self.data.validation.y).mean())


# The quasi-Newton reading ---------------------------------------------------------------------------------------------

BATCHES, RATE = (32, 128, 512, 4000), 0.9


def quasi_newton(batch: int, seed: int, steps: int = 1000) -> Run:
    """cos(c, H EMA(s)) along AdamW's training; H is the exact Hessian of the whole training data.

    EMA(s) is the movement smoothed as c is, so that they would be the same if H stood still and gradients had no noise.
    """
    training = Training("AdamW", seed, steps, batch)
    e = [torch.zeros_like(p) for p in training.params]
    s, before = [torch.zeros_like(p) for p in training.params], [p.detach().clone() for p in training.params]
    cosines = []
    while training.at < steps - 1:
        at = [p.detach().clone() for p in training.params]  # where this step takes its gradient
        s = [RATE * a + (1 - RATE) * (p - q) for a, p, q in zip(s, at, before, strict=True)]
        look = training.at % (steps // 10) == steps // 10 - 1
        product = training.hessian(slice(None)).times(flat(s)) if look else None
        training.step()
        c = [(1 - RATE) * (cast(Tensor, p.grad) - a) for p, a in zip(training.params, e, strict=True)]
        e = [a + b for a, b in zip(e, c, strict=True)]
        before = at
        if product is not None:
            cosines.append(float(nn.functional.cosine_similarity(flat(c), product, dim=0)))
    return {"cosines": cosines}


def quasi_newton_table(runs: Sequence[Run]) -> str:
    rows = []
    for batch in BATCHES:
        found = [run["cosines"] for run in chosen(runs, batch=batch)]
        left = interval(fmean(1 - x**2 for x in cosines) for cosines in found)
        rows.append([f"{batch:,}", interval(map(fmean, found)), left, str(len(found))])
    return table(["batch, of 4,000", "cos(c, H EMA(s))", "share of \\|c\\|² that it leaves", "n"], rows)


# sqrt(v) and curvature ------------------------------------------------------------------------------------------------

PROBES = 200  # of the Hessian's diagonal, each one product


def proxy(seed: int, steps: int = 2000, probes: int = PROBES) -> Run:
    """Spearman's rank correlation of sqrt(v) with the diagonals of Hessian and Fisher matrix, in a weight matrix."""
    training = Training("AdamW", seed, steps)
    sizes = [p.numel() for p in training.params]
    matrices = [i for i, p in enumerate(training.params) if p.dim() == 2]
    ranks = []
    for step in training.run(every=steps // 4):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            found = {"Hessian": hessian_diagonal(training, probes).abs(), "Fisher": fisher_diagonal(training)}
        hs = [denominator(training.optimizer, p).flatten().numpy() for p in training.params]
        parts = {name: [x.numpy() for x in torch.split(diagonal, sizes)] for name, diagonal in found.items()}
        means = {
            name: fmean(float(stats.spearmanr(hs[i], of[i]).statistic) for i in matrices) for name, of in parts.items()
        }
        ranks.append({"step": step, **means})
    return {"ranks": ranks}


def hessian_diagonal(training: Training, probes: int) -> Tensor:
    """By Hutchinson's estimator."""
    with warnings.catch_warnings():
        # Dependencies of curvlinops still use the deprecated torch.jit.script.
        warnings.filterwarnings("ignore", message=".*torch.jit.script.* is deprecated")
        from curvlinops import hutchinson_diag
    return cast(Tensor, hutchinson_diag(training.hessian(), num_matvecs=probes))


def fisher_diagonal(training: Training) -> Tensor:
    """The mean square of the gradients of single samples, with labels drawn from the model's own predictions."""
    x = training.data.train.x[:SAMPLES]
    with torch.no_grad():
        labels = torch.distributions.Categorical(logits=training.model(x)).sample()
    values = {name: p.detach() for name, p in training.model.named_parameters()}

    def loss(params: dict[str, Tensor], one: Tensor, label: Tensor) -> Tensor:
        outputs = functional_call(training.model, params, (one[None],))
        return training.task.loss(outputs, label[None]).mean()

    squares = torch.zeros(sum(p.numel() for p in training.params))
    for xs, ys in zip(torch.split(x, 100), torch.split(labels, 100), strict=True):
        grads = vmap(grad(loss), in_dims=(None, 0, 0))(values, xs, ys)
        squares += flat(g.square().sum(0) for g in grads.values())
    return squares / len(x)


def proxy_table(runs: Sequence[Run]) -> str:
    names = ("Hessian", "Fisher")
    found = [[run["ranks"][i] for run in runs] for i in range(len(runs[0]["ranks"]))]
    rows = [[str(at[0]["step"]), *(interval(x[name] for x in at) for name in names), str(len(runs))] for at in found]
    return table(["step", *(f"with diag {name}" for name in names), "n"], rows)


# The trace at equal training loss -------------------------------------------------------------------------------------

LOSSES = (0.25, 0.125)


def trace(contender: str, seed: int, steps: int = 2000, points: int = 20) -> Run:
    """Training loss and trace of the Hessian along a training, at the point that the contender is evaluated at."""
    training, curve = Training(contender, seed, steps), []
    for _ in training.run(every=steps // points):
        with training.evaluation(), torch.random.fork_rng():
            torch.manual_seed(0)
            curve.append([float(training.loss().detach()), training.hessian().trace()])
    return {"curve": curve, "accuracy": training.accuracy()}


def at_loss(curve: Sequence[Sequence[float]], level: float) -> float | None:
    """The trace where the training loss first passes a level, between the points beside it; None if it does not."""
    for (high, before), (low, after) in pairwise(curve):
        if high > level >= low:
            share = math.log(high / level) / math.log(high / low)
            return before + share * (after - before)
    return None


def trace_table(runs: Sequence[Run]) -> str:
    rows = []
    for contender in CONTENDERS:
        some = chosen(runs, contender=contender)
        told = []
        for level in LOSSES:
            values = [x for run in some if (x := at_loss(run["curve"], level)) is not None]
            told.append(f"{interval(values)} ({len(values)})" if values else "not reached")
        ends = [interval(run["curve"][-1][i] for run in some) for i in (0, 1)]
        rows.append([contender, *told, *ends, interval(run["accuracy"] for run in some), str(len(some))])
    head = ["trace of H at training loss", *(f"{level:g} (n)" for level in LOSSES), "loss at the end"]
    return table([*head, "trace at the end", "validation, %", "n"], rows)


def draw_trace(runs: Sequence[Run], axes: Axes) -> None:
    for contender in CONTENDERS:
        curves = [run["curve"] for run in chosen(runs, contender=contender)]
        points = [[fmean(at[i] for at in points) for points in zip(*curves, strict=True)] for i in (0, 1)]
        axes.loglog(*points, ".-", label=contender)
    axes.set(xlabel="training loss", ylabel="trace of the Hessian")
    axes.invert_xaxis()
    axes.legend()


CHECKS = {
    "quasi-newton": Check([{"batch": batch} for batch in BATCHES], quasi_newton, quasi_newton_table),
    "proxy": Check([{}], proxy, proxy_table),
    "trace": Check([{"contender": name} for name in CONTENDERS], trace, trace_table, draw_trace),
}
