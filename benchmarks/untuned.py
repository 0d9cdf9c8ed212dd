"""HATAM untuned: swapped in for AdamW at AdamW's tuned options, with what could be its defaults, task by task.

Only HATAM's own options are added. Candidates were compared on validation data, on seeds that nothing else uses, at
what a first search had found for AdamW (``results/untuned/adamw.json``); the default is then judged on test data and
new seeds, at AdamW's winning options of the study (``results/full/cells``).

    python benchmarks/untuned.py              measure what has no record yet, fill in docs/log.md and README.md
    python benchmarks/untuned.py --render     fill in from the records alone
"""

from __future__ import annotations

import dataclasses
import json

import grids

from hatam.bench import report
from hatam.bench.cli import make_run
from hatam.bench.records import Run
from hatam.bench.tasks import all_tasks, find

ADAMW, RECORDS = grids.ROOT / "results/untuned/adamw.json", grids.ROOT / "results/untuned/records"
FIRST_SEED = {"tune": 6000, "final": 7000}  # no stage of the study has these
CANDIDATES = (
    "adamw",
    "hatam-lr:gamma=1.0",
    "hatam:modulator_cap=3.0,gamma=0.03",
    "hatam:gamma=0.02",
    "hatam:gamma=0.03",
    "hatam:gamma=0.05",
    "atam-decoupled:gamma=0.03",
    "atam-decoupled:gamma=0.05",
)
DEFAULT = ("adamw", "hatam")
SEEDS = {"tune": (4, 10), "final": (8, 20)}  # on slow tasks, on others


def runs() -> list[Run]:
    """The candidates', and then the default's, which alone read test data."""
    found = []
    first = json.loads(ADAMW.read_text(encoding="utf-8"))
    winners = {name: grids.tuned(name, "adamw") for name in all_tasks()}
    for purpose, specs, tuned in (("tune", CANDIDATES, first), ("final", DEFAULT, winners)):
        for name in all_tasks():
            options = tuned.get(name)
            for spec in specs if options else ():
                made = make_run(find(name), spec, 0)
                for seed in range(FIRST_SEED[purpose], FIRST_SEED[purpose] + SEEDS[purpose][name not in grids.SLOW]):
                    found.append(dataclasses.replace(made, options=made.options | options, seed=seed, purpose=purpose))
    return found


def table() -> str:
    """A row for each candidate: mean validation score, its standard error, and how it compares to AdamW."""
    found = grids.scores(RECORDS)
    tasks = [name for name in all_tasks() if (name, "adamw") in found]
    rows = {
        spec: [grids.compared(found.get((name, spec), {}), found[name, "adamw"], name) for name in tasks]
        for spec in CANDIDATES
    }
    return f"{grids.table('', tasks, rows)}\n\n{grids.counts(found)}"


if __name__ == "__main__":
    grids.main(__doc__, "untuned", lambda jobs: grids.measure(runs(), RECORDS, jobs), table)
    report.fill_in(grids.ROOT / "README.md", "untuned", report.brief(RECORDS, DEFAULT))
