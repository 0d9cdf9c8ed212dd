"""The study's task `bytes` with the search that the fast tasks have: 29 settings for each contender, not 15.

With two values of an option a stage, which β1 a contender comes to decides its score there (``beta1.py``). This is
AdamW, SAM and two forms of HATAM with four values a stage, by the study's protocol and code: chosen on validation data,
judged on the seeds of the study's finals and as many more that it does not use.

    python benchmarks/longer_search.py              do what has no record yet, fill in docs/log.md; resumes
    python benchmarks/longer_search.py --render     fill in from the records alone
"""

from __future__ import annotations

from dataclasses import replace

import grids
from confirmed import CONTENDERS
from targets import in_short

from hatam.bench import report
from hatam.bench.study import cli
from hatam.bench.study.plans import PLANS, SLOW, Plan

FOLDER = grids.ROOT / "results/longer_search"
TASK = "bytes"
SEEDS = {**SLOW.seeds, "final": 2 * SLOW.seeds["final"]}
PLAN = Plan(
    FOLDER.name,
    "",
    tasks=(TASK,),
    contenders=CONTENDERS,
    comparisons=("steps",),
    budget=replace(SLOW, trials=PLANS["full"].budget.trials, seeds=SEEDS),
)


def measure(jobs: int) -> None:
    """Lead the study to its end."""
    PLANS[PLAN.name] = PLAN
    cli.run(PLAN.name, results=FOLDER.parent, jobs=jobs)


def table() -> str:
    """Scores as README's of the study for either form, and where both searches ended."""
    peers, forms = CONTENDERS[:2], CONTENDERS[2:]
    rows = {
        f"{budget_of(TASK).settings} settings": [in_short(grids.tuned(TASK, name, cells)) for name in CONTENDERS]
        for budget_of, cells in ((PLANS["full"].budget_of, grids.CELLS), (PLAN.budget_of, FOLDER / "cells"))
    }
    scores = [report.brief(FOLDER / "records", (*peers, form)) for form in forms]
    return "\n\n".join([*scores, grids.table("search", CONTENDERS, rows)])


if __name__ == "__main__":
    grids.main(__doc__, "longer_search", measure, table)
