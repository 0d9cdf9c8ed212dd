"""Rules for a radius that finds its own size, tried on stacked runs before any of them goes into the library.

The radius is relative to the weights: RMS(d) = γ f RMS(z) for every tensor. A rule says f from what a step knows for
free: lr over its peak, and r = mean(h) over its largest value so far, which falls as a network comes to fit its data.
It may also take a mean over the whole network where others take a tensor's, or add S c to the step instead of undoing
and redoing S e. Everyone has AdamW's options of the task; scores are on validation data.

    python benchmarks/rules.py               try what has no record yet, fill in docs/log.md
    python benchmarks/rules.py --render      fill in from the records alone
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grids
import torch
from radius import FIRST_SEED, SEEDS, TASKS
from torch import Tensor

from hatam.bench import records
from hatam.bench.batched import Stack
from hatam.bench.cli import make_run
from hatam.bench.schedules import cosine
from hatam.bench.tasks import Task, find
from hatam.bench.trainers import Gradient
from hatam.bench.training import _batches, evaluate

RECORDS = grids.ROOT / "results/rules"
FADE, EPS = 0.1, 1e-8


@dataclass(frozen=True)
class Rule:
    """A rule: γ and f, ``factor(lr / peak, r of the tensor, r of the tensor that fell least)``; r has shape (runs,).

    Attributes:
        network: which means are over the network: "" none, "h" that of the modulator, "size" RMS(z) and RMS(S e / h).
        additive: w ← w − lr m̂ / h − ρ S c / h, with nothing to undo.
        only: "matrices" or "vectors", norms and biases, where only these are displaced.
        norm: γ f is the norm of the whole displacement, not a share of each tensor's weights: each by its "size",
            or at the start of training, each by its "weights".
        old: sizes are one step old, as one pass over memory has them.
        growth: the factor by which what u is multiplied with may grow in a step.
        cap: of S.
        start: the radius grows with "lr" in the warm-up, is "full" from the start, or grows as √(1 − β2^t), "v".
    """

    words: str
    gamma: float
    factor: Callable[[float, Tensor, Tensor], Tensor]
    network: str = ""
    additive: bool = False
    only: str = ""
    norm: str = ""
    old: bool = False
    growth: float = math.inf
    start: str = "lr"
    cap: float = 3.0


def one(lr: float, r: Tensor, slow: Tensor) -> Tensor:
    """No rule."""
    return torch.ones_like(r)


RULES = {
    "adamw": Rule("AdamW", 0.0, lambda lr, r, slow: torch.zeros_like(r)),
    **{f"constant-{g}": Rule(f"constant, γ = {g}", g, one) for g in (0.01, 0.03, 0.1)},
    **{f"additive-{g}": Rule(f"additive, γ = {g}", g, one, additive=True) for g in (0.03, 0.1)},
    **{f"network-h-{g}": Rule(f"S by the network's mean, γ = {g}", g, one, network="h") for g in (0.03, 0.1)},
    **{f"network-size-{g}": Rule(f"sizes of the network, γ = {g}", g, one, network="size") for g in (0.03, 0.1)},
    **{f"{only}-0.1": Rule(f"{only} alone, γ = 0.1", 0.1, one, only=only) for only in ("matrices", "vectors")},
    **{
        f"follows-{g}": Rule(f"lr / peak (fade = 1), γ = {g}", g, lambda lr, r, slow: torch.full_like(r, lr))
        for g in (0.03, 0.1)
    },
    "late-0.1": Rule("1 − lr / peak, γ = 0.1", 0.1, lambda lr, r, slow: torch.full_like(r, 1 - lr)),
    "inverse-0.03": Rule("1 / r, γ = 0.03, at most 0.2", 0.03, lambda lr, r, slow: (1 / r).clamp(max=0.2 / 0.03)),
    "inverse-slow-0.02": Rule(
        "1 / r of the tensor that fell least, γ = 0.02, at most 0.2",
        0.02,
        lambda lr, r, slow: (1 / slow).clamp(max=0.2 / 0.02),
    ),
    "excess-slow-0.1": Rule(
        "1 / r − 1 of the tensor that fell least, γ = 0.1, at most 0.2",
        0.1,
        lambda lr, r, slow: (1 / slow - 1).clamp(max=0.2 / 0.1),
    ),
}


class Stacked:
    """AdamW on z and the displacement for all runs of a stack: leading axis runs, every mean a run's own."""

    def __init__(self, stack: Stack, options: dict[str, Any], rule: Rule) -> None:
        self.params, self.grads, self.rule = list(stack.params.values()), stack.grads, rule
        self.lr, self.wd = options["lr"], options["weight_decay"]
        self.beta1, self.beta2 = options["beta1"], options["beta2"]
        self.m, self.v, self.d = ([torch.zeros_like(p) for p in self.params] for _ in range(3))
        runs = len(self.params[0])
        self.first = sum(p.detach().square().flatten(1).sum(1) for p in self.params)
        self.mean = [torch.full((runs,), math.inf) for _ in self.params]
        self.largest = [torch.zeros(runs) for _ in self.params]
        self.scales = [torch.zeros(runs) for _ in self.params]
        self.t, self.peak = 0, 0.0

    def step(self, share: float, peaked: bool) -> None:
        """One step at ``share`` of the peak lr."""
        self.t += 1
        known = overall(self.mean, self.params) if self.rule.network == "h" else self.mean
        moved = [self._descend(i, share * self.lr, known[i]) for i in range(len(self.params))]
        ratios = [mean / largest for mean, largest in zip(self.mean, self.largest, strict=True)]
        slow = torch.stack([r for r, p in zip(ratios, self.params, strict=True) if p.ndim > 2]).amax(0)
        held = self._held(share, peaked)
        sizes = [[x.square().flatten(1).mean(1) for x in column] for column in list(zip(*moved, strict=True))[:2]]
        if self.rule.network == "size":
            sizes = [overall(column, self.params) for column in sizes]
        if self.rule.norm == "weights":
            sizes[0] = [z2 / self.first for z2 in sizes[0]]
        elif self.rule.norm:
            sizes[0] = [torch.full_like(u2, 1 / sum(p[0].numel() for p in self.params)) for u2 in sizes[1]]
        scales = self._scales(*sizes)
        for i, (z, u, bend) in enumerate(moved):
            size = self.rule.gamma * held * self.rule.factor(share if peaked else 1.0, ratios[i], slow)
            scale = size * scales[i]
            if self.rule.only and self.rule.only != ("matrices" if u.ndim > 2 else "vectors"):
                scale = torch.zeros_like(scale)
            self.d[i] = torch.zeros_like(u) if self.rule.additive else along(scale, u) * u
            self.params[i].data.copy_(z - (along(scale, u) * bend if self.rule.additive else self.d[i]))

    def _held(self, share: float, peaked: bool) -> float:
        """The share of the radius at a share of the peak lr."""
        if self.rule.start == "lr":
            return min(1.0 if peaked else share, share / FADE)
        self.peak = max(self.peak, share)
        filled = (1 - self.beta2**self.t) ** 0.5 if self.rule.start == "v" else 1.0
        return filled * min(1.0, share / (FADE * self.peak))

    def _scales(self, sizes: list[Tensor], spans: list[Tensor]) -> list[Tensor]:
        """What makes every u as large as asked for, from their mean squares."""
        known = self.scales
        new = [torch.nan_to_num((z2 / u2).sqrt(), 0.0, 0.0, 0.0) for z2, u2 in zip(sizes, spans, strict=True)]
        self.scales = [
            torch.where(last > 0, torch.minimum(scale, self.rule.growth * last), scale)
            for scale, last in zip(new, known, strict=True)
        ]
        return known if self.rule.old else self.scales

    def _descend(self, i: int, lr: float, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """z after a step of AdamW, S e / h with e = m, and S c / h."""
        p, g, m, v = self.params[i].detach(), self.grads[i], self.m[i], self.v[i]
        before = m.clone()
        m.lerp_(g, 1 - self.beta1)
        v.mul_(self.beta2).addcmul_(g, g, value=1 - self.beta2)
        h = (v / (1 - self.beta2**self.t)).sqrt() + EPS
        z = p + self.d[i]
        z = z - lr * (m / (1 - self.beta1**self.t) / h + self.wd * z)
        spread = torch.maximum(along(mean, h), h / self.rule.cap)
        self.mean[i] = h.flatten(1).mean(1)
        self.largest[i] = torch.maximum(self.largest[i], self.mean[i])
        return z, m / spread, (m - before) / spread

    def straighten(self) -> None:
        """Put z in place of w."""
        for p, d in zip(self.params, self.d, strict=True):
            p.data.add_(d)


def along(x: Tensor, like: Tensor) -> Tensor:
    """One number for each run, beside a tensor of all runs."""
    return x.view(-1, *[1] * (like.ndim - 1))


def overall(means: list[Tensor], params: list[Tensor]) -> list[Tensor]:
    """The mean over all tensors of each run, for every tensor, from the means over each."""
    counts = [p[0].numel() for p in params]
    whole = sum(n * mean for n, mean in zip(counts, means, strict=True)) / sum(counts)
    return [whole for _ in means]


def tried(task: Task, rule: Rule, seeds: list[int], options: dict[str, Any] | None = None) -> list[float]:
    """The validation scores of a rule, one for each seed; AdamW's options are the task's unless given."""
    data, options, models = task.data(), options or make_run(task, "adamw", 0).options, []
    for seed in seeds:
        torch.manual_seed(seed)
        models.append(task.model())
    stack = Stack(models, task.loss)
    batches = [_batches(len(data.train.y), task.batch_size, seed) for seed in seeds]
    with torch.no_grad():
        optimizer = Stacked(stack, options, rule)
        for t in range(task.steps):
            chosen = [next(each) for each in batches]
            stack.answer([Gradient(data.train.x[i], data.train.y[i]) for i in chosen])
            optimizer.step(cosine(t, task.steps, task.warmup), t >= task.warmup * task.steps)
        optimizer.straighten()
    return [evaluate(task, model, data.validation) for model in models]


def measure() -> None:
    """Try every rule on every task, each written as soon as it is there."""
    torch.set_num_threads(1)
    for name in TASKS:
        for key, rule in RULES.items():
            path = RECORDS / name / f"{key}.json"
            if path.exists():
                continue
            seeds = [FIRST_SEED + i for i in range(SEEDS.get(name, 4))]
            scores = tried(find(name), rule, seeds)
            found = {"benchmark": "rules", "environment": records.environment(), "rule": rule.words, "seeds": seeds}
            records.write(path, {**found, "validation": scores})
            print(name, rule.words, grids.cell(scores), flush=True)


def table() -> str:
    """A row for each rule, a column for each task."""
    rows = {}
    for key, rule in RULES.items():
        paths = [RECORDS / name / f"{key}.json" for name in TASKS]
        scores = [json.loads(p.read_text(encoding="utf-8"))["validation"] if p.exists() else [] for p in paths]
        rows[rule.words] = list(map(grids.cell, scores))
    return grids.table("f, γ", TASKS, rows)


if __name__ == "__main__":
    grids.main(__doc__, "rules", lambda jobs: measure(), table)
