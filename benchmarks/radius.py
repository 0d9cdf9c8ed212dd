"""In what unit to measure the radius of the decoupled form: validation at sizes of γ in each unit, task by task.

Everyone has AdamW's options of the task, lr and betas too; only γ changes. Test data are not read.

    python benchmarks/radius.py              measure (about 15 minutes on 2 cores; resumes), fill in docs/log.md
    python benchmarks/radius.py --render     fill in from the records alone
"""

from __future__ import annotations

import dataclasses

import grids

from hatam.bench.cli import make_run
from hatam.bench.records import Run
from hatam.bench.tasks import find

RECORDS = grids.ROOT / "results/radius/records"
FIRST_SEED = 5000  # no stage of the study has these
SEEDS = {"bytes": 2, "bytes-overfit": 2}
TASKS = (
    "mnist1d-mlp",
    "mnist1d-mlp-plain",
    "mnist1d-mlp-noise",
    "mnist1d-conv",
    "digits",
    "digits-noise",
    "diabetes",
    "breast-cancer",
    "bytes",
    "bytes-overfit",
)
SIZES = {
    "hatam-lr:": (1, 2, 4, 8),
    "hatam-relative:modulator_cap=3.0,": (0.003, 0.01, 0.03, 0.1, 0.3),
    "hatam-relative:": (0.03, 0.1),
    "atam-decoupled:": (0.01, 0.03, 0.1),
}
SPECS = ("adamw", *(f"{contender}gamma={gamma}" for contender, gammas in SIZES.items() for gamma in gammas))


def runs() -> list[Run]:
    """All of them; none reads test data."""
    return [
        dataclasses.replace(make_run(find(name), spec, FIRST_SEED + i), purpose="tune")
        for name in TASKS
        for spec in SPECS
        for i in range(SEEDS.get(name, 4))
    ]


def table() -> str:
    """A row for each contender and γ: mean validation score and its standard error."""
    found = grids.scores(RECORDS)
    rows = {spec: [grids.cell(found.get((name, spec), {}).values()) for name in TASKS] for spec in SPECS}
    return f"{grids.table('γ', TASKS, rows)}\n\n{grids.counts(found)}"


if __name__ == "__main__":
    grids.main(__doc__, "radius", lambda jobs: grids.measure(runs(), RECORDS, jobs), table)
