"""How much of a contender's score is the cosine: the same runs with an lr that stays up until the last fifth.

Everyone in the study decays lr by a cosine but Schedule-Free AdamW, whose lr stays up, and which averages weights
instead. Here AdamW, SAM and HATAM, at the options that the study found for them with the cosine, also keep lr up after
the same warm-up and let it fall to 0 over the last fifth of the steps, in a line. Validation scores, new seeds.

    python benchmarks/schedules.py               try what has no record yet, fill in docs/log.md
    python benchmarks/schedules.py --render      fill in from the records alone
"""

from __future__ import annotations

import json
import math

import grids
import torch
from ablation import tasks

from hatam.bench import records
from hatam.bench.batched import train_many
from hatam.bench.records import Run
from hatam.bench.tasks import find

RECORDS = grids.ROOT / "results/schedules"
FIRST_SEED, SEEDS = 6900, 12  # no stage of the study has these
ROWS = {
    "Schedule-Free": ("schedule-free", "cosine"),  # as its records are called: it has a schedule of its own
    **{
        f"{words}, {schedule}": (contender, schedule)
        for contender, words in (("adamw", "AdamW"), ("sam", "SAM"), ("hatam", "HATAM"))
        for schedule in ("cosine", "late")
    },
}


def measure() -> None:
    """Do the runs that have no record yet, those of a row and task together."""
    torch.set_num_threads(1)
    for name in tasks():
        for contender, schedule in ROWS.values():
            path = RECORDS / name / f"{contender}-{schedule}.json"
            if path.exists():
                continue
            task, options = find(name), grids.tuned(name, contender) or {}
            numbers = {key: math.inf if value == "inf" else value for key, value in options.items()}
            if schedule != "cosine":
                numbers["schedule"] = schedule
            runs = [
                Run(name, contender, contender, numbers, seed, task.steps, task.batch_size, task.warmup, "tune")
                for seed in range(FIRST_SEED, FIRST_SEED + SEEDS)
            ]
            scores = {run.seed: r["result"]["validation"] for run, r in zip(runs, train_many(task, runs), strict=True)}
            found = {"benchmark": "schedules", "environment": records.environment(), "options": options}
            records.write(path, {**found, "schedule": schedule, "validation": scores})
            print(name, contender, schedule, grids.cell(scores.values()), flush=True)


def table() -> str:
    """A row for each contender and schedule; + and − beside the same contender's cosine."""
    rows: dict[str, list[str]] = {words: [] for words in ROWS}
    for name in tasks():
        for words, (contender, schedule) in ROWS.items():
            values, cosines = _scores(name, contender, schedule), _scores(name, contender, "cosine")
            rows[words].append(
                grids.compared(values, cosines, name) if schedule != "cosine" else grids.cell(values.values())
            )
    return grids.table("contender, schedule", tasks(), rows)


def _scores(task: str, contender: str, schedule: str) -> dict[int, float]:
    record = json.loads((RECORDS / task / f"{contender}-{schedule}.json").read_text(encoding="utf-8"))
    return {int(seed): float(score) for seed, score in record["validation"].items()}


if __name__ == "__main__":
    grids.main(__doc__, "schedules", lambda jobs: measure(), table)
