"""Checks what docs/theory.md says by measurements, and fills in its tables and figures.

python -m research.theory                    measure what has no record yet, all statements; an interrupted one goes on
python -m research.theory damping --seeds 1  one of them
python -m research.theory --render           fill in from the records alone
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

from hatam.bench import files, report
from hatam.bench.running import start_quietly

from . import edge, networks, quadratics
from .check import ROOT, Check, Job, Run, save

CHECKS: dict[str, Check] = {**quadratics.CHECKS, **networks.CHECKS, **edge.CHECKS}


def measure(name: str, seeds: int, path: Path, processes: int) -> None:
    """Do the runs that have no record yet, each process on one thread; each is written as it ends."""
    wanted = [{**case, "seed": seed} for case in CHECKS[name].cases for seed in range(seeds)]
    runs = read(path)
    missing = lacking(wanted, runs)
    if not missing:
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(missing)), spawn, start_quietly) as pool:
        for future in as_completed([pool.submit(do, name, job) for job in missing]):
            runs.append({**future.result(), "environment": files.environment()})
            first = [run for job in wanted for run in runs if job.items() <= run.items()]
            runs = first + [run for run in runs if run not in first]  # of more seeds than are wanted now
            files.write(path, {"runs": runs})
            print(f"{name}: {len(missing)} runs, {len(lacking(wanted, runs))} to go", flush=True)


def read(path: Path) -> list[Run]:
    """The runs of a record, none where there is no record."""
    return list(json.loads(path.read_text(encoding="utf-8"))["runs"]) if path.exists() else []


def lacking(wanted: list[Job], runs: list[Run]) -> list[Job]:
    """The jobs without a run."""
    return [job for job in wanted if not any(job.items() <= run.items() for run in runs)]


def do(name: str, job: Job) -> Run:
    """One run."""
    return {**job, **CHECKS[name].run(**job)}


def main() -> None:
    """Measure and fill in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("check", nargs="*", metavar="CHECK", help=f"of: {', '.join(CHECKS)}; default: all")
    parser.add_argument("--seeds", type=int, default=5, help="runs of each case (default 5)")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="parallel processes (default: the cores)")
    parser.add_argument("--render", action="store_true", help="do not measure; fill in from the records alone")
    options = parser.parse_args()
    if unknown := set(options.check) - set(CHECKS):
        parser.error(f"no check {', '.join(sorted(unknown))}; there are: {', '.join(CHECKS)}")
    for name in options.check or CHECKS:
        path, check = ROOT / f"results/theory/{name}.json", CHECKS[name]
        if not options.render:
            measure(name, options.seeds, path, options.jobs)
        runs = read(path)
        report.fill_in(ROOT / "docs/theory.md", name, check.table(runs))
        if check.draw:
            save(ROOT / f"docs/figures/theory-{name}.svg", partial(check.draw, runs))


if __name__ == "__main__":
    main()
