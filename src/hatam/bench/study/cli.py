"""The commands ``hatam study …``."""

from __future__ import annotations

import importlib
import os
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated, cast

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from .. import archive, report
from ..contenders import known
from ..tasks import all_tasks
from ..terminal import plain_console, show
from . import coordinator
from .coordinator import Coordinator
from .local import LocalWorkers
from .plans import PLANS, STAGES
from .queue import Queue, Waiting
from .stages import Spaces
from .storage import FILE, embedded

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Tune, choose and judge all contenders by one protocol.\n\nExample: hatam study run --plan quick",
)
console = plain_console()

NAME = typer.Option(help="Of the study; its folder below --results. Default: the plan's.")
RESULTS = typer.Option(help="Folder of all studies.")
STORAGE = typer.Option(
    help="Address of the queue, such as postgresql://user@host/database. Default: a file in the study's folder."
)
JOBS = typer.Option(min=0, help="Processes on this machine. Default: the cores.")
ONLY = typer.Option(help="Lead only these contenders of the plan now; give it again for each. Default: all.")
TASK = typer.Option(help="Lead only these tasks of the plan now; give it again for each. Default: all.")
COMPARISON = typer.Option(help='Lead only "steps", or only "time", now. Default: both.')
HEARTBEAT = typer.Option(min=1, help="Seconds between two signs of life of a worker; the same for all of a study.")


@app.command()
def run(
    plan: Annotated[str, typer.Option(help=f"One of: {', '.join(PLANS)}.")] = "full",
    name: Annotated[str | None, NAME] = None,
    results: Annotated[Path, RESULTS] = Path("results"),
    storage: Annotated[str | None, STORAGE] = None,
    jobs: Annotated[int | None, JOBS] = None,
    heartbeat: Annotated[int, HEARTBEAT] = 30,
    contender: Annotated[list[str] | None, ONLY] = None,
    comparison: Annotated[list[str] | None, COMPARISON] = None,
    task: Annotated[list[str] | None, TASK] = None,
    retry_failed: Annotated[bool, typer.Option(help="Try jobs again that failed for good.")] = False,
) -> None:
    """Do a study, from its plan to its last record. The same command goes on where it was interrupted.

    Where other machines work on it too, give them the same --storage: 'hatam study work --storage …'.

    Example: hatam study run --plan quick --jobs 2
    """
    chosen, left_out = PLANS[known(plan, PLANS, "plan")].resolved(all_tasks())
    _say([f"left out: {line}" for line in left_out])
    name = name or chosen.name
    folder = results / name
    folder.mkdir(parents=True, exist_ok=True)
    url, waiting = storage or embedded(folder), _waiting(heartbeat)
    archive.unpack(folder / "records")
    queue = Queue(url, name, waiting)
    spaces = cast(Spaces, importlib.import_module("hatam.bench.spaces"))
    study = Coordinator(chosen, folder, queue, all_tasks(), spaces, contender, comparison, task)
    if retry_failed:
        queue.try_again()
    for timed in study.time():
        console.print(f"step times: {timed}")
    count = _count(jobs)
    finished = study.step()  # so that what is recorded already is known
    _predict(study, count)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a study in the background is ended by that
    try:
        if not finished:
            _lead(study, LocalWorkers(count, url, name, study.root, waiting))
    except KeyboardInterrupt:
        console.print("interrupted; finished runs are kept, the same command goes on", soft_wrap=True)
        raise typer.Exit(130) from None
    finally:
        _pack(study.root)
    _show_cost(study)
    queue.close()
    if study.failures:
        raise typer.Exit(1)


@app.command()
def work(
    name: Annotated[str, typer.Option(help="Of the study.")] = "full",
    results: Annotated[Path, RESULTS] = Path("results"),
    storage: Annotated[str | None, STORAGE] = None,
    jobs: Annotated[int | None, JOBS] = None,
    heartbeat: Annotated[int, HEARTBEAT] = 30,
) -> None:
    """Work on a study that 'hatam study run' leads, on this or on another machine, until it is finished.

    Example: hatam study work --name full --storage postgresql://hatam@queue.example/hatam
    """
    folder = results / name
    url = storage or embedded(_there(folder))
    waiting = _waiting(heartbeat)
    workers = LocalWorkers(_count(jobs), url, name, folder / "records", waiting)
    try:
        while workers.watch():
            time.sleep(0.5)
    except KeyboardInterrupt:
        console.print("interrupted; what was not finished is back in the queue", soft_wrap=True)
        raise typer.Exit(130) from None
    finally:
        workers.end()


@app.command()
def status(
    name: Annotated[str, typer.Option(help="Of the study.")] = "full",
    results: Annotated[Path, RESULTS] = Path("results"),
    storage: Annotated[str | None, STORAGE] = None,
) -> None:
    """Say how many jobs of each stage wait, run, are done or have failed, and why.

    Example: hatam study status --name quick
    """
    queue = Queue(storage or _queued(results / name), name)
    counts = {stage: dict.fromkeys(("waiting", "running", "complete", "failed"), 0) for stage in STAGES}
    errors = []
    for stage in queue.stages():
        for state in queue.states(stage):
            counts[stage.partition("/")[0]][state.state] += 1
            if state.error is not None:
                errors.append(f"failed: {stage}: {state.error}")
    shown = Table("stage", *counts[STAGES[0]], title=f"{name}: {'finished' if queue.noted('finished') else 'open'}")
    for stage, row in counts.items():
        shown.add_row(stage, *map(str, row.values()))
    show(shown)
    _say(errors)


@app.command()
def collect(
    name: Annotated[str, typer.Option(help="Of the study.")] = "full",
    results: Annotated[Path, RESULTS] = Path("results"),
    storage: Annotated[str | None, STORAGE] = None,
) -> None:
    """Write all records that the queue holds into the study's folder, for instance on another machine.

    Example: hatam study collect --storage postgresql://hatam@queue.example/hatam
    """
    queue = Queue(storage or _queued(results / name), name)
    count = coordinator.collect(queue, results / name / "records")
    console.print(f"{count} records are in {results / name / 'records'}", soft_wrap=True)


@app.command()
def pack(
    name: Annotated[str, typer.Option(help="Of the study.")] = "full",
    results: Annotated[Path, RESULTS] = Path("results"),
) -> None:
    """Put the records that there are into one archive for each task, as 'hatam study run' does at its end.

    Example: hatam study pack --name full
    """
    _pack(_there(results / name) / "records")


@app.command()
def table(
    name: Annotated[str, typer.Option(help="Of the study.")] = "full",
    results: Annotated[Path, RESULTS] = Path("results"),
    update: Annotated[Path | None, typer.Option(help="Page with the lines <!-- NAME:start --> and …:end -->.")] = None,
    everyone: Annotated[bool, typer.Option(help="All contenders, a table for each task, and their shifts.")] = False,
) -> None:
    """Print AdamW, SAM and HATAM task by task as Markdown, or fill a page in; 'hatam report' has figures too.

    Example: hatam study table --name full --everyone --update docs/results.md
    """
    text = (report.in_markdown if everyone else report.brief)(_there(results / name))
    if update is None:
        print(text)
    else:
        report.fill_in(update, name, text)


def _pack(root: Path) -> None:
    if root.exists():
        console.print(f"{archive.pack(root)} records are in the archives in {root}", soft_wrap=True)


def _there(folder: Path) -> Path:
    if not folder.exists():
        raise ValueError(f"there is no study in {folder}; begin it with 'hatam study run', or give --storage")
    return folder


def _queued(folder: Path) -> str:
    if not (_there(folder) / FILE).exists():
        raise ValueError(
            f"there is no queue in {folder}, so no job waits; 'hatam report {folder}' shows the records, "
            "'hatam study run' makes a queue, --storage names one elsewhere"
        )
    return embedded(folder)


def _count(jobs: int | None) -> int:
    return (os.cpu_count() or 1) if jobs is None else jobs


def _waiting(heartbeat: int) -> Waiting:
    return Waiting(heartbeat=heartbeat, grace=4 * heartbeat, poll=min(2.0, heartbeat / 2))


def _predict(study: Coordinator, jobs: int) -> None:
    left = timedelta(seconds=round((study.seconds_in_all() - study.seconds_done()) / max(1, jobs)))
    many = len(study.cells)
    console.print(
        f"{many} cells (task, contender, comparison) to tune and judge; left: about {left} on {jobs} cores",
        highlight=False,
    )


def _lead(study: Coordinator, workers: LocalWorkers) -> None:
    """Until the study is finished; progress is counted in seconds of work, as measured in the timing stage."""
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>5.1f}%"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        speed_estimate_period=1800,
    )
    try:
        with bars:
            bar = bars.add_task("study", total=study.seconds_in_all())
            while not study.step():
                bars.update(bar, completed=study.seconds_done())
                workers.watch()
                time.sleep(study.queue.waiting.poll)
            bars.update(bar, completed=study.seconds_in_all())
    finally:
        workers.end()


def _show_cost(study: Coordinator) -> None:
    """What each contender's stages took, in thousands of gradients of a batch, and what failed."""
    shown = Table("contender", *STAGES, "all", title="cost in thousands of gradients")
    for contender in study.only or study.plan.contenders or ():
        costs = [_cost(study, contender, stage) for stage in STAGES]
        shown.add_row(contender, *(f"{cost / 1e3:.1f}" for cost in (*costs, sum(costs))))
    show(shown)
    _say([f"failed: {failure.stage} {failure.params}: {failure.error}" for failure in study.failures])


def _cost(study: Coordinator, contender: str, stage: str) -> float:
    cells = [cell for cell in study.cells if cell.contender == contender]
    runs = {run.path(study.root): run for cell in cells for run in study.runs(cell, stage)}  # some are two cells'
    results = [study.result(run) for run in runs.values()]
    return sum((float(result["gradients"]) for result in results if result is not None), 0.0)


def _say(lines: list[str]) -> None:
    for line in lines:
        console.print(line, soft_wrap=True)
