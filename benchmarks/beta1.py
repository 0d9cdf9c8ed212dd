"""What other values of β1 do on `bytes`, which a search of 15 settings tries all of for AdamW, and few for the others.

Each contender's winning options of that search, kept in ``results/beta1/options.json`` as they were, with one β1 after
another, once at its own lr and weight decay and once at AdamW's. Scores are on validation data, at the task's steps, on
seeds that nothing else uses.

    python benchmarks/beta1.py              measure what has no record yet, fill in docs/log.md
    python benchmarks/beta1.py --render     fill in from the records alone
"""

from __future__ import annotations

import json

import grids

from hatam.bench.records import Run
from hatam.bench.tasks import find

ROOT = grids.ROOT / "results/beta1"
RECORDS = ROOT / "records"
TASK = "bytes"
FIRST_SEED, SEEDS = 8700, 5
OPTIONS = json.loads((ROOT / "options.json").read_text(encoding="utf-8"))
BETA1 = (0.5, 0.8, 0.9)
OTHERS = ("sam", "hatam", "hatam-relative")
COLUMNS = {
    "adamw": ("adamw", False),
    **{name: (name, False) for name in OTHERS},
    **{f"{name}, AdamW's lr": (name, True) for name in OTHERS},
}


def runs() -> list[Run]:
    """All of them; none reads test data."""
    task, found = find(TASK), []
    for column, (contender, borrows) in COLUMNS.items():
        borrowed = {key: OPTIONS["adamw"][key] for key in ("lr", "weight_decay")} if borrows else {}
        for beta1 in BETA1:
            options = {**OPTIONS[contender], **borrowed, "beta1": beta1}
            for seed in range(FIRST_SEED, FIRST_SEED + SEEDS):
                budget = task.steps, task.batch_size, task.warmup
                found.append(Run(TASK, f"{column}, {beta1}", contender, options, seed, *budget, purpose="tune"))
    return found


def table() -> str:
    """A row for each β1; + and − beside AdamW at the β1 that its search found."""
    found = grids.scores(RECORDS)
    tuned = found[TASK, f"adamw, {OPTIONS['adamw']['beta1']}"]
    rows = {
        f"{beta1}": [grids.compared(found[TASK, f"{column}, {beta1}"], tuned, TASK) for column in COLUMNS]
        for beta1 in BETA1
    }
    return f"{grids.table('β1', list(COLUMNS), rows)}\n\n{grids.counts(found)}"


if __name__ == "__main__":
    grids.main(__doc__, "beta1", lambda jobs: grids.measure(runs(), RECORDS, jobs), table)
