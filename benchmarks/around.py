"""Four optimizers on four tasks: bare, under an average of weights (EMA), under Schedule-Free, and straightened.

Every variant has the same number of choices, by the mean validation score: five lr, and two schedules, or with
Schedule-Free, where lr is constant and the optimizer has no momentum of its own, two interpolations. What it chose runs
once on fresh seeds and test data. What results/around.json has is not run again.

    python benchmarks/around.py             measure, and fill in docs/around_your_optimizer.md
    python benchmarks/around.py --render    fill in from the record alone
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pytorch_optimizer import Lion
from torch.optim import SGD, AdamW, Muon, Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hatam import Straightened
from hatam.bench.running import end_with_parent
from hatam.bench.schedules import SCHEDULES
from hatam.bench.tasks import find
from hatam.state import is_hidden

ROOT = Path(__file__).resolve().parent.parent
TASKS = {"mnist1d-conv": (0.06, 2, 8), "mnist1d-mlp-noise": (0.06, 2, 8), "fashion-noise": (0.003, 1, 4)}
TASKS |= {"bytes": (0.054, 1, 4)}  # AdamW's lr, the middle of the grid, and the numbers of seeds for choice and test
VARIANTS = {"bare": ("cosine", "late"), "EMA": ("cosine", "constant"), "Schedule-Free": ("0.9", "0.6")}
VARIANTS |= {"straightened": ("cosine", "late")}
GRID, MEMORY, FIRST_SEED = (1 / 9, 1 / 3, 1, 3, 9), 0.1, {"validation": 31000, "test": 32000}


def adamw(params: Any, lr: float, momentum: float) -> list[Optimizer]:
    return [AdamW(params, lr, (momentum, 0.95), weight_decay=0.15)]


def muon(params: Any, lr: float, momentum: float) -> list[Optimizer]:
    """Muon, with AdamW's size of a step, for hidden matrices, and AdamW for the rest."""
    matrices = {name: p for name, p in params if p.dim() == 2 and is_hidden(p, name)}
    own = Muon(list(matrices.items()), lr, 0.15, momentum, nesterov=momentum > 0, adjust_lr_fn="match_rms_adamw")
    return [own, *adamw([one for one in params if one[0] not in matrices], lr, momentum)]


Base = Callable[[Any, float, float], list[Optimizer]]
BASES: dict[str, tuple[float, Base]] = {  # the middle of the grid of lr over AdamW's
    "SGD": (5.0, lambda params, lr, momentum: [SGD(params, lr, momentum, weight_decay=5e-4)]),
    "Lion": (0.1, lambda params, lr, momentum: [Lion(params, lr, (momentum, 0.99), weight_decay=1.5)]),
    "Muon": (1.0, muon),
    "AdamW": (1.0, adamw),
}


class ScheduleFree:
    """Schedule-Free (arXiv 2405.15682) around any optimizer: gradients at y = β x + (1 − β) z, evaluation at x."""

    def __init__(self, base: Optimizer, beta: float) -> None:
        self.base, self.beta, self.weight = base, beta, 0.0
        self.param_groups = base.param_groups
        self.ps = [p for group in base.param_groups for p in group["params"]]
        self.xs, self.zs = ([p.detach().clone() for p in self.ps] for _ in range(2))

    @torch.no_grad()
    def step(self) -> None:
        torch._foreach_copy_(self.ps, self.zs)
        self.base.step()
        torch._foreach_copy_(self.zs, self.ps)
        square = float(self.param_groups[0]["lr"]) ** 2
        self.weight += square
        torch._foreach_lerp_(self.xs, self.zs, square / self.weight if square else 0.0)
        torch._foreach_lerp_(self.ps, self.xs, self.beta)

    @torch.no_grad()
    def eval(self) -> None:
        torch._foreach_copy_(self.ps, self.xs)


class Run(NamedTuple):
    task: str
    base: str
    variant: str
    steps: int
    schedule: str
    lr: float
    split: str
    seed: int

    def __str__(self) -> str:
        return " ".join(map(str, self))


def train(run: Run) -> float:
    """The score of a run on its split, at z or at the average. NaN where the loss is not finite."""
    torch.set_num_threads(1)
    torch.manual_seed(run.seed)
    task, rng = find(run.task), torch.Generator().manual_seed(run.seed)
    data, model, order = task.data(), task.model(), torch.empty(0, dtype=torch.long)
    free = run.variant == "Schedule-Free"
    optimizers = BASES[run.base][1](list(model.named_parameters()), run.lr, 0.0 if free else 0.9)
    wrapped = list[Any](map(Straightened, optimizers)) if run.variant == "straightened" else []
    wrapped += [ScheduleFree(optimizer, float(run.schedule)) for optimizer in optimizers if free]
    schedule = SCHEDULES["constant" if free else run.schedule]
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(max(0.0, 1 - 1 / (MEMORY * run.steps))))
    for step in range(run.steps):
        if len(order) < task.batch_size:
            order = torch.randperm(len(data.train.y), generator=rng)
        batch, order = order[: task.batch_size], order[task.batch_size :]
        loss = task.loss(model(data.train.x[batch]), data.train.y[batch]).mean()
        model.zero_grad()
        loss.backward()
        if not loss.isfinite():
            return math.nan
        for optimizer in wrapped or optimizers:
            for group in optimizer.param_groups:
                group["lr"] = run.lr * schedule(step, run.steps, task.warmup)
            optimizer.step()
        if run.variant == "EMA":
            average.update_parameters(model)
    for own in wrapped:
        own.eval()
    judged, split = (average if run.variant == "EMA" else model).eval(), getattr(data, run.split)
    with torch.no_grad():
        parts = zip(split.x.split(1000), split.y.split(1000), strict=True)
        return float(torch.cat([task.metric(judged(x), y) for x, y in parts]).mean())


def runs(split: str, scores: dict[str, float], task: str, base: str, variant: str, steps: int | None) -> list[Run]:
    """All choices on validation data; or the best of them on test data, once they all have a score."""
    adamw_lr, tuning, final = TASKS[task]
    middle, steps, first = adamw_lr * BASES[base][0], steps or find(task).steps, FIRST_SEED[split]
    choices = [(schedule, float(f"{middle * x:.3g}")) for schedule in VARIANTS[variant] for x in GRID]
    if split == "validation":
        seeds = range(first, first + tuning)
        return [Run(task, base, variant, steps, *choice, split, seed) for choice in choices for seed in seeds]
    sums = dict.fromkeys(choices, 0.0)
    for run in runs("validation", scores, task, base, variant, steps):
        if str(run) not in scores:
            return []
        sums[run.schedule, run.lr] += scores[str(run)] * (1 if find(task).higher_is_better else -1)
    best = max(choices, key=lambda choice: -math.inf if math.isnan(sums[choice]) else sums[choice])
    return [Run(task, base, variant, steps, *best, split, seed) for seed in range(first, first + final)]


def measure(tasks: list[str], steps: int | None, jobs: int, scores: dict[str, float], record: Path) -> None:
    """Do what has no score yet, and write the record after every run."""
    with ProcessPoolExecutor(jobs, get_context("spawn"), end_with_parent) as pool:
        for split in FIRST_SEED:
            todo = [run for t in tasks for b in BASES for v in VARIANTS for run in runs(split, scores, t, b, v, steps)]
            started = {pool.submit(train, run): run for run in todo if str(run) not in scores}
            for done in as_completed(started):
                scores[str(started[done])] = done.result()
                new, kept = record.with_suffix(".new"), dict(sorted(scores.items()))
                new.write_text(json.dumps({"torch": torch.__version__, "scores": kept}, indent=1))
                new.replace(record)


def read(record: Path) -> dict[str, float]:
    return dict(json.loads(record.read_text(encoding="utf-8"))["scores"]) if record.exists() else {}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", action="append", choices=TASKS, help="of these tasks alone")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--steps", type=int, help="of every run: a trial, recorded in runs/, whose table is printed")
    parser.add_argument("--render", action="store_true", help="run nothing, fill in from the record alone")
    given = parser.parse_args()
    record = ROOT / f"runs/around-{given.steps}.json" if given.steps else ROOT / "results/around.json"
    if not given.render:
        record.parent.mkdir(exist_ok=True)
        measure(given.task or list(TASKS), given.steps, given.jobs, read(record), record)
    import_module("around_table").show(read(record), given.steps)
