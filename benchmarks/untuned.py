"""HATAM untuned: swapped in for AdamW at AdamW's tuned options, with what could be its defaults, task by task.

AdamW's options are those of the study's winner (``results/full/cells``); only HATAM's own are added. Candidates are
compared on validation data, on seeds that nothing else uses; the defaults are then judged on test data and new seeds.

    python benchmarks/untuned.py              measure what has no record yet, fill in docs/log.md and docs/results.md
    python benchmarks/untuned.py --render     fill in from the records alone
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from radius import cell

from hatam.bench import archive, records, report, runner
from hatam.bench.cli import make_run
from hatam.bench.records import Run
from hatam.bench.stats import paired
from hatam.bench.study.plans import PLANS
from hatam.bench.tasks import all_tasks, find

ROOT = Path(__file__).resolve().parent.parent
CELLS, RECORDS = ROOT / "results/full/cells", ROOT / "results/untuned/records"
FIRST_SEED = {"tune": 6000, "final": 7000}  # no stage of the study has these
SLOW = PLANS["full"].budgets
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


def tuned(task: str) -> dict[str, Any] | None:
    """AdamW's winning options on a task, None where the study has not come to them yet."""
    path = CELLS / task / "adamw-steps.json"
    winner = json.loads(path.read_text(encoding="utf-8"))["winner"] if path.exists() else None
    return None if winner is None else dict(winner["params"])


def runs() -> list[Run]:
    """All of them; none reads test data."""
    found = []
    for name in all_tasks():
        options = tuned(name)
        for spec in CANDIDATES if options else ():
            made = make_run(find(name), spec, 0)
            for i in range(4 if name in SLOW else 10):
                seed = FIRST_SEED["tune"] + i
                found.append(dataclasses.replace(made, options=made.options | options, seed=seed, purpose="tune"))
    return found


def measure(jobs: int) -> None:
    """Do what has no record yet."""
    archive.unpack(RECORDS)
    failed = runner.run_all(runner.missing(runs(), RECORDS), RECORDS, jobs, lambda run, steps: None, batch=True)
    archive.pack(RECORDS)
    for run, error in failed:
        raise SystemExit(f"{run.task}, {run.label}, seed {run.seed}: {error}")


def table() -> str:
    """A row for each candidate, a column for each task: mean validation score, its standard error."""
    scores: dict[tuple[str, str], dict[int, float]] = {}
    for record in records.read_all(RECORDS):
        run = record["run"]
        scores.setdefault((run["task"], run["label"]), {})[run["seed"]] = float(record["result"]["validation"])
    tasks = [name for name in all_tasks() if (name, "adamw") in scores]
    lines = [f"| | {' | '.join(tasks)} |", "|---|" + "---:|" * len(tasks)]
    for spec in CANDIDATES:
        cells = [cell(list(scores.get((name, spec), {}).values())) for name in tasks]
        better = [_better(scores[name, spec], scores[name, "adamw"], name) for name in tasks if spec != "adamw"]
        signs = "".join({1: "+", 0: "·", -1: "−"}[b] for b in better)
        lines.append(f"| {spec} {signs} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _better(scores: dict[int, float], baseline: dict[int, float], task: str) -> int:
    """1 where it is better than AdamW with p < 0.05 in a paired test, -1 where it is worse, else 0."""
    difference = paired(scores, baseline)
    sign = (1 if difference.mean > 0 else -1) * (1 if find(task).higher_is_better else -1)
    return sign if difference.p < 0.05 else 0


def main() -> None:
    """Measure unless told not to, then fill in from the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--render", action="store_true", help="do not measure, only fill in from the records")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if not options.render:
        measure(options.jobs)
    report.fill_in(ROOT / "docs/log.md", "untuned", table())


if __name__ == "__main__":
    main()
