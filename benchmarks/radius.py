"""In what unit to measure the radius of the decoupled form: validation at sizes of γ in each unit, task by task.

Everyone has AdamW's options of the task, lr and betas too; only γ changes. Test data are not read.

    python benchmarks/radius.py              measure (about 15 minutes on 2 cores; resumes), fill in docs/log.md
    python benchmarks/radius.py --render     fill in from the records alone
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
from pathlib import Path

from hatam.bench import archive, records, report, runner
from hatam.bench.cli import make_run
from hatam.bench.records import Run
from hatam.bench.tasks import find

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "results/radius/records"
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
    "hatam:modulator_cap=3.0,": (0.003, 0.01, 0.03, 0.1, 0.3),
    "hatam:": (0.03, 0.1),
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


def measure(jobs: int) -> None:
    """Do what has no record yet."""
    archive.unpack(RECORDS)
    failed = runner.run_all(runner.missing(runs(), RECORDS), RECORDS, jobs, lambda run, steps: None, batch=True)
    archive.pack(RECORDS)
    for run, error in failed:
        raise SystemExit(f"{run.task}, {run.label}, seed {run.seed}: {error}")


def table() -> str:
    """A row for each contender and γ, a column for each task: mean validation score and its standard error."""
    scores: dict[tuple[str, str], list[float]] = {}
    for record in records.read_all(RECORDS):
        key = record["run"]["task"], record["run"]["label"]
        scores.setdefault(key, []).append(float(record["result"]["validation"]))
    lines = [f"| γ | {' | '.join(TASKS)} |", "|---|" + "---:|" * len(TASKS)]
    for spec in SPECS:
        lines.append(f"| {spec} | {' | '.join(cell(scores.get((name, spec), [])) for name in TASKS)} |")
    counts = sorted({len(values) for values in scores.values()})
    return "\n".join(
        [*lines, "", f"n = {' or '.join(map(str, counts))} seeds; the number after ± is a standard error."]
    )


def cell(values: list[float]) -> str:
    """Mean and standard error."""
    if not values:
        return ""
    digits = 1 if statistics.fmean(values) > 9 else 3
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.fmean(values):.{digits}f} ± {error:.{digits}f}"


def main() -> None:
    """Measure unless told not to, then fill in from the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--render", action="store_true", help="do not measure, only fill in from the records")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    if not options.render:
        measure(options.jobs)
    report.fill_in(ROOT / "docs/log.md", "radius", table())


if __name__ == "__main__":
    main()
