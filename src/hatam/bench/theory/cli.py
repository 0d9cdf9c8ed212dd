"""The command ``hatam theory``."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import torch
import typer
from matplotlib.figure import Figure
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import records, report
from ..contenders import known
from ..terminal import plain_console
from . import CHECKS
from .check import Check, Job, Run

console = plain_console()


def theory(
    check: Annotated[list[str] | None, typer.Argument(help=f"Of: {', '.join(CHECKS)}. Default: all.")] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each case.")] = 5,
    jobs: Annotated[int | None, typer.Option(min=1, help="Parallel processes. Default: the cores.")] = None,
    results: Annotated[Path, typer.Option(help="Folder of the records, one for each check.")] = Path("runs/theory"),
    figures: Annotated[Path | None, typer.Option(help="Folder of the figures. Default: that of the records.")] = None,
    update: Annotated[Path | None, typer.Option(help="Page with the lines <!-- NAME:start --> and …:end -->.")] = None,
    render: Annotated[bool, typer.Option("--render", help="Do not measure; draw from the records alone.")] = False,
) -> None:
    """Check what the theory says by measurements, and draw them: some minutes on 2 cores. An interrupted one goes on.

    docs/theory.md says what each check means.

    Example: hatam theory damping --seeds 1
    """
    for name in check or CHECKS:
        one = CHECKS[known(name, CHECKS, "check")]
        path = results / f"{name}.json"
        if not render:
            measure(one, seeds, path, jobs or os.cpu_count() or 1)
        record = read(path)
        if lacking := _missing(one.jobs(1), record["runs"]):
            raise ValueError(f"{path} lacks {len(lacking)} runs that its table needs; run without --render")
        text = one.table(record["runs"])
        draw(one, record["runs"], (figures or results) / f"theory-{name}.svg")
        if update is None:
            console.print(f"\n{one.title}\n", style="bold")
            print(text)
        else:
            report.fill_in(update, name, text)


def read(path: Path) -> dict[str, Any]:
    """A record, or one without runs."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {"runs": []}


def measure(check: Check, seeds: int, path: Path, processes: int) -> None:
    """Do the runs that have no record yet; each is written as it ends."""
    wanted = check.jobs(seeds)
    record = read(path)
    found: list[Run] = record["runs"]
    missing = _missing(wanted, found)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task(check.name, total=len(missing))
        for run in done(check.name, missing, processes):
            found.append({**run, "environment": records.environment()})
            first = [run for job in wanted for run in found if job.items() <= run.items()]
            runs = first + [run for run in found if run not in first]  # of more seeds than are wanted now
            records.write(path, {**record, "check": check.name, "runs": runs})
            progress.advance(bar)


def _missing(jobs: list[Job], runs: list[Run]) -> list[Job]:
    return [job for job in jobs if not any(job.items() <= run.items() for run in runs)]


def done(name: str, missing: list[Job], processes: int) -> Iterator[Run]:
    """What the runs give, in any order; each process computes on one thread."""
    if processes == 1 or len(missing) < 2:
        yield from (_run(name, job) for job in missing)
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(processes, len(missing)), spawn, torch.set_num_threads, (1,)) as pool:
        for future in as_completed([pool.submit(_run, name, job) for job in missing]):
            yield future.result()


def _run(name: str, job: Job) -> Run:
    return {**job, **CHECKS[name].run(**job)}


def draw(check: Check, runs: list[Run], path: Path) -> None:
    """The figure, as text that a change changes only where it must."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "hatam", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(6.4, 4), layout="constrained")
        axes = figure.subplots()
        check.draw(runs, axes)
        axes.set_title(check.title, fontsize="medium")
        figure.savefig(path, metadata={"Date": None})
