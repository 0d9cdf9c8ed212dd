"""AdamW, SAM and two forms of HATAM once more at the options that the study found for them, on new seeds.

The study's final seeds were used several times: forms of HATAM that were the default before were judged on them, and
the search was widened after them. Here nothing is chosen: the options are those of ``results/full/cells`` at equal
steps, and the seeds are used for nothing else. First there were as many as the study's finals have. They left many an
interval beside SAM wider than the margin that it is held against, so there are more now, those after them all unseen
when their number was settled.

    python benchmarks/confirmed.py              do what has no record yet, fill in docs/results.md
    python benchmarks/confirmed.py --render     fill in from the records alone
"""

from __future__ import annotations

import dataclasses

import grids

from hatam.bench import report
from hatam.bench.cli import make_run
from hatam.bench.records import Run
from hatam.bench.study.plans import PLANS
from hatam.bench.tasks import all_tasks, find

RECORDS = grids.ROOT / "results/confirmed"
PAGE = "docs/results.md"
CONTENDERS = ("adamw", "sam", "hatam", "hatam-relative")
FIRST_SEED = 8500  # no stage of the study has these
TIMES, TIMES_SLOW = 5, 2
"""How many times the seeds of the study's finals a task has here; the first of them were looked at before the rest."""


def runs() -> list[Run]:
    """Of all tasks that the study has tuned them on."""
    found = []
    for name in all_tasks():
        for contender in CONTENDERS:
            options = grids.tuned(name, contender)
            for i in range(looked_at(name) * (TIMES_SLOW if name in grids.SLOW else TIMES) if options else 0):
                made = make_run(find(name), contender, FIRST_SEED + i)
                found.append(dataclasses.replace(made, options=options, purpose="final"))
    return found


def looked_at(task: str) -> int:
    """How many of a task's seeds were looked at before the others were run."""
    return len(PLANS["full"].seeds_of("final", task))


def table() -> str:
    """As README's of the study, for either form, and SAM beside AdamW."""
    peers, forms = CONTENDERS[:2], CONTENDERS[2:]
    return "\n\n".join(report.brief(RECORDS, labels) for labels in (*((*peers, form) for form in forms), peers))


if __name__ == "__main__":
    grids.main(__doc__, "confirmed", lambda jobs: grids.measure(runs(), RECORDS, jobs), table, PAGE)
