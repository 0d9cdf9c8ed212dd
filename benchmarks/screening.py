"""The candidate for HATAM untuned, beside AdamW with three schedules, Schedule-Free and the first form.

Everyone has AdamW's lr, weight decay and betas: AdamW's best lr for a cosine on validation data, a third of it, and
three times as much. The screening compares candidates on validation data. The judgement is of its choice, once, on test
data and on seeds that no run before it had.

    python benchmarks/screening.py lr            AdamW with a cosine over the grid of lr
    python benchmarks/screening.py screen        the candidates
    python benchmarks/screening.py judge         the choice

:mod:`screened` fills in the pages from the committed scores.

What has a score in results/screening, or a record below runs/screening, is not run again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hatam.bench import records, runner
from hatam.bench.cli import make_run
from hatam.bench.records import Run
from hatam.bench.tasks import find

ROOT = Path(__file__).resolve().parent.parent
RUNS, RESULTS = ROOT / "runs/screening", ROOT / "results/screening"

LRS: dict[str, tuple[float, ...]] = {
    "digits": (0.0008, 0.0024, 0.0072, 0.0216, 0.0648),
    "digits-noise": (0.0001, 0.0003, 0.0009),
    "letter": (0.001, 0.003, 0.009, 0.027, 0.081),
    "diabetes": (0.00008, 0.00025, 0.00075),
    "breast-cancer": (0.00008, 0.00025, 0.00075),
    "mnist1d-mlp": (0.01, 0.03, 0.09),
    "mnist1d-mlp-plain": (0.01, 0.03, 0.09),
    "mnist1d-mlp-noise": (0.02, 0.06, 0.18),
    "mnist1d-conv": (0.02, 0.06, 0.18),
    "mnist1d-conv-noise": (0.02, 0.06, 0.18),
    "fashion": (0.0003, 0.001, 0.003, 0.009, 0.027),
    "fashion-noise": (0.0003, 0.001, 0.003, 0.009),
    "bytes": (0.006, 0.018, 0.054, 0.162),
    "bytes-overfit": (0.0007, 0.002, 0.006),
    "bytes-long": (0.003, 0.01, 0.03),
    "minilm": (0.0001, 0.0003, 0.0009),
}
"""The grid by task, in factors of three about what earlier searches found."""

SLOW = {"bytes", "bytes-overfit", "bytes-long", "fashion", "fashion-noise", "minilm"}
BASELINE = "adamw"
SCREENED = (
    "adamw:schedule=late",
    "adamw-ema:schedule=constant,decay=0.995",
    "schedule-free",
    "hatam-first:gamma=None",
)
DROP_IN = "hatam"
LATE, EMA, SCHEDULE_FREE, DEFAULT = SCREENED

STAGES = {"lr": "tune", "screen": "tune", "judge": "judge"}
FIRST_SEED = {"lr": 20000, "screen": 20000, "judge": 23000}
SEEDS = {"lr": (8, 4), "screen": (8, 4), "judge": (10, 4)}  # of fast tasks and of slow ones
TWICE = (BASELINE, DROP_IN)
"""Who is judged on twice as many seeds at AdamW's best lr: the first question."""
LONG = ("minilm", "bytes-long")  # are judged at AdamW's best lr alone, the last on as many seeds of three contenders

Scores = dict[str, dict[str, dict[int, float]]]  # by task, by contender and lr, by seed


def label(spec: str, lr: float) -> str:
    """A contender at an lr."""
    return f"{spec} @ {lr:g}"


def scores(stage: str) -> Scores:
    """What has been collected of a stage."""
    return {
        task: {
            name: {int(seed): float(score) for seed, score in each["scores"].items()} for name, each in labels.items()
        }
        for task, labels in _collected(stage).items()
    }


def _collected(stage: str) -> dict[str, dict[str, dict[str, Any]]]:
    """By task and label: the scores, and a digest of the options, so that a label with new defaults is run again."""
    path = RESULTS / f"{stage}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))["tasks"]) if path.exists() else {}


def digest(run: Run) -> str:
    """Of a run's options."""
    return run.path(RUNS).parent.name


@cache
def best_lr(task: str) -> float:
    """AdamW's for a cosine, by the mean of the validation scores."""
    found, sign = scores("lr")[task], 1 if find(task).higher_is_better else -1
    means = {lr: sign * mean(found[label(BASELINE, lr)].values()) for lr in LRS[task]}
    return max(means, key=lambda lr: means[lr])


def mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def lrs(task: str) -> tuple[float, float, float]:
    """A third of AdamW's best, that, and three times as much."""
    best = best_lr(task)
    return (best / 3, best, 3 * best)


def cells(stage: str, task: str) -> list[tuple[str, float]]:
    """The contenders of a stage and their lr."""
    if stage == "lr":
        return [(BASELINE, lr) for lr in LRS[task]]
    at, off = {
        "screen": ((DROP_IN, BASELINE, *SCREENED), (BASELINE, DROP_IN)),
        "judge": (
            (BASELINE, DROP_IN, LATE) if task == LONG[-1] else (BASELINE, DROP_IN, LATE, SCHEDULE_FREE),
            () if task in LONG else TWICE,
        ),
    }[stage]
    third, best, triple = lrs(task)
    return [(spec, lr) for lr, specs in ((best, at), (third, off), (triple, off)) for spec in specs]


def runs(stage: str, task: str) -> list[Run]:
    """Of a stage on a task; seeds count from the stage's first."""
    found = []
    for spec, lr in cells(stage, task):
        made = make_run(find(task), spec, 0)
        options = {**made.options, "lr": lr}
        twice = stage == "judge" and spec in TWICE and lr == best_lr(task) and task != LONG[-1]
        count = SEEDS[stage][task in SLOW] * (2 if twice else 1)
        for seed in range(FIRST_SEED[stage], FIRST_SEED[stage] + count):
            changed = {"label": label(spec, lr), "options": options, "seed": seed, "purpose": STAGES[stage]}
            found.append(dataclasses.replace(made, **changed))
    return found


def measure(stage: str, task: str, jobs: int) -> None:
    """Do what has no score yet."""
    found = _collected(stage)
    todo = runner.missing([run for run in runs(stage, task) if not _has(found, run)], RUNS)
    failed = runner.run_all(todo, RUNS, jobs, lambda run, steps: None) if todo else []
    for run, error in failed:
        raise SystemExit(f"{run.task}, {run.label}, seed {run.seed}: {error}")


def _has(found: Mapping[str, Mapping[str, Mapping[str, Any]]], run: Run) -> bool:
    own = found.get(run.task, {}).get(run.label)
    return own is not None and own["options"] == digest(run) and str(run.seed) in own["scores"]


def collect(stage: str, task: str) -> None:
    """Put the scores of a task into the stage's file, beside those that are there."""
    key, found = "test" if STAGES[stage] == "judge" else "validation", _collected(stage)
    labels = dict(found.get(task, {}))
    for run in runs(stage, task):
        if run.path(RUNS).exists() and not _has(found, run):
            own = labels.get(run.label)
            if own is None or own["options"] != digest(run):
                own = labels[run.label] = {"options": digest(run), "scores": {}}
            own["scores"][str(run.seed)] = records.read(run.path(RUNS))["result"][key]
    if labels:
        content = {"score": key, "environment": records.environment(), "tasks": {**found, task: labels}}
        records.write(RESULTS / f"{stage}.json", content)


def main() -> None:
    """Do a stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=STAGES)
    parser.add_argument("--task", action="append", choices=LRS, help="of these tasks alone")
    parser.add_argument("--collect", action="store_true", help="run nothing, collect what has a record")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    for task in options.task or LRS:
        if not options.collect:
            measure(options.stage, task, options.jobs)
        collect(options.stage, task)


if __name__ == "__main__":
    main()
