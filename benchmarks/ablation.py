"""What each part of HATAM does: its winning options of the study with one thing changed at a time, task by task.

Scores are on validation data, at the task's steps, on seeds that no stage of the study uses.

    python benchmarks/ablation.py              measure what has no record yet, fill in docs/log.md
    python benchmarks/ablation.py --render     fill in from the records alone
"""

from __future__ import annotations

import math
from typing import Any

import grids

from hatam.bench.records import Run
from hatam.bench.tasks import all_tasks, find

RECORDS = grids.ROOT / "results/ablation/records"
CONTENDER = "hatam"
FIRST_SEED, SEEDS = 8200, 10  # no stage of the study has these
TUNED = "as tuned"
UNIFORM = {"modulator": "uniform", "modulator_cap": None}
CHANGES: dict[str, dict[str, Any]] = {
    TUNED: {},
    "γ = 0 (AdamW)": {"gamma": 0.0},
    "γ = 0, β1 = 0": {"gamma": 0.0, "beta1": 0.0},
    "γ × ½": {"gamma": 0.5},
    "γ × 2": {"gamma": 2.0},
    "cap 3": {"modulator_cap": 3.0},
    "no cap": {"modulator_cap": math.inf},
    "S = 1 (ATAM)": UNIFORM,
    "S = 1, γ × ½": {**UNIFORM, "gamma": 0.5},
    "S = 1, γ × 2": {**UNIFORM, "gamma": 2.0},
    "β1 = 0, βc as it was": {"beta1": 0.0},
    "βc = 0.5": {"beta_c": 0.5},
    "βc = 0.97": {"beta_c": 0.97},
    "fade 1 (follows lr)": {"fade": 1.0},
    "fade 0.03": {"fade": 0.03},
    "β2 = 0.999": {"beta2": 0.999},
}
FACTORS = ("gamma",)  # where the change is a factor; 0 is 0


def tasks() -> list[str]:
    """Those on which the study has a winner, but for the slow ones."""
    return [name for name in all_tasks() if grids.tuned(name, CONTENDER) and name not in grids.SLOW]


def runs() -> list[Run]:
    """All of them; none reads test data."""
    found = []
    for name in tasks():
        task, winner = find(name), grids.tuned(name, CONTENDER)
        for label, change in CHANGES.items():
            options = {**winner, **{key: winner[key] * x if key in FACTORS else x for key, x in change.items()}}
            if "β1" in label and winner["beta_c"] is None and options["gamma"]:
                options["beta_c"] = winner["beta1"]
            for seed in range(FIRST_SEED, FIRST_SEED + SEEDS):
                budget = task.steps, task.batch_size, task.warmup
                found.append(Run(name, label, CONTENDER, options, seed, *budget, purpose="tune"))
    return found


def table() -> str:
    """A row for each change: mean validation score, its standard error, and how it compares to none."""
    found = grids.scores(RECORDS)
    shown = [name for name in all_tasks() if (name, TUNED) in found]
    rows = {
        label: [grids.compared(found.get((name, label), {}), found[name, TUNED], name) for name in shown]
        for label in CHANGES
    }
    return f"{grids.table('', shown, rows)}\n\n{grids.counts(found)}"


if __name__ == "__main__":
    grids.main(__doc__, "ablation", lambda jobs: grids.measure(runs(), RECORDS, jobs), table)
