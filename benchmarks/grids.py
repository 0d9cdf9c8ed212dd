"""What the grids of runs share: doing them, their validation scores, a table of them, and the command line."""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hatam.bench import archive, records, report, runner
from hatam.bench.records import Run
from hatam.bench.stats import paired
from hatam.bench.study.plans import PLANS
from hatam.bench.tasks import find

ROOT = Path(__file__).resolve().parent.parent
CELLS = ROOT / "results/full/cells"
SLOW = frozenset(PLANS["full"].budgets)
Scores = dict[tuple[str, str], dict[int, float]]


def tuned(task: str, contender: str, cells: Path = CELLS, alone: str | None = None) -> dict[str, Any] | None:
    """A contender's winning options of a study at equal steps, None where it has not come to them yet.

    ``alone`` is a stage of the search: the best of its settings, which for the first differ in lr alone.
    """
    path = cells / task / f"{contender}-steps.json"
    if not path.exists():
        return None
    cell = json.loads(path.read_text(encoding="utf-8"))
    winner = cell["winner"]
    if alone is not None:
        sign = 1 if find(task).higher_is_better else -1
        winner = max(cell["stages"][alone]["settings"], key=lambda setting: sign * float(setting["validation"]))
    return None if winner is None else dict(winner["options"])


def measure(runs: Sequence[Run], root: Path, jobs: int) -> None:
    """Do the runs that have no record yet."""
    archive.unpack(root)
    failed = runner.run_all(runner.missing(runs, root), root, jobs, lambda run, steps: None, batch=True)
    archive.pack(root)
    for run, error in failed:
        raise SystemExit(f"{run.task}, {run.label}, seed {run.seed}: {error}")


def scores(root: Path) -> Scores:
    """Validation scores by seed, by task and label, of the runs that read no test data."""
    found: Scores = {}
    for record in records.read_all(root):
        run = record["run"]
        if run["purpose"] == "tune":
            found.setdefault((run["task"], run["label"]), {})[run["seed"]] = float(record["result"]["validation"])
    return found


def cell(values: Iterable[float]) -> str:
    """Mean and standard error."""
    values = list(values)
    if not values:
        return ""
    digits = 1 if statistics.fmean(values) > 9 else 3
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.fmean(values):.{digits}f} ± {error:.{digits}f}"


def compared(values: Mapping[int, float], baseline: Mapping[int, float], task: str) -> str:
    """:func:`cell`, and + where it is better than the baseline by a paired test at p < 0.05, − where it is worse."""
    difference = paired(values, baseline)
    if difference is None or difference.p >= 0.05:
        return cell(values.values())
    better = (difference.mean > 0) == find(task).higher_is_better
    return f"{cell(values.values())} {'+' if better else '−'}"


def table(corner: str, tasks: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A column for each task."""
    lines = [f"| {corner} | {' | '.join(tasks)} |", "|---|" + "---:|" * len(tasks)]
    return "\n".join(lines + [f"| {label} | {' | '.join(cells)} |" for label, cells in rows.items()])


def counts(found: Scores) -> str:
    """How many seeds the scores are of, in words."""
    seeds = sorted({len(values) for values in found.values()})
    return f"n = {' or '.join(map(str, seeds))} seeds; the number after ± is a standard error."


def main(
    doc: str | None,
    marker: str,
    measured: Callable[[int], None],
    rendered: Callable[[], str],
    page: str = "docs/log.md",
) -> None:
    """Measure unless told not to, then fill in the page from the records."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--render", action="store_true", help="do not measure, only fill in from the records")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if not options.render:
        measured(options.jobs)
    report.fill_in(ROOT / page, marker, rendered())
