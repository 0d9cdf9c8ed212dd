"""The commands ``hatam study …``."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from ..contenders import known
from ..records import Store
from ..running import start_quietly
from ..tasks import all_tasks
from ..terminal import plain_console, show
from . import timing
from .leader import Leader
from .plans import COMPARISONS, PLANS, Plan
from .storage import Storage, Waiting, counted, embedded
from .worker import work as do_runs

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Tune, choose and judge all contenders by one protocol.\n\nExample: hatam study run --plan quick",
)
console = plain_console()

PLAN = typer.Option(help=f"One of: {', '.join(PLANS)}.")
RESULTS = typer.Option(help="Folder of all studies' records; those of a plan are in PLAN.parquet.")
STORAGE = typer.Option(help="Address, such as postgresql://user@host/database. Default: a file in runs/PLAN.")
JOBS = typer.Option(min=0, help="Processes on this machine. Default: the cores.")
HEARTBEAT = typer.Option(min=1, help="Seconds between two signs of life of a worker; the same for all of a study.")


@app.command()
def run(
    plan: Annotated[str, PLAN] = "study",
    results: Annotated[Path, RESULTS] = Path("results"),
    storage: Annotated[str | None, STORAGE] = None,
    jobs: Annotated[int | None, JOBS] = None,
    heartbeat: Annotated[int, HEARTBEAT] = 30,
    contender: Annotated[list[str] | None, typer.Option(help="Only these, now; once for each.")] = None,
    task: Annotated[list[str] | None, typer.Option(help="Only these, now; once for each.")] = None,
    comparison: Annotated[list[str] | None, typer.Option(help=f"Only these, now: {', '.join(COMPARISONS)}.")] = None,
) -> None:
    """Do a study, from its plan to its last record. The same command goes on where it was interrupted.

    Where other machines work on it too, give them the same --storage: 'hatam study work --storage …'.

    Example: hatam study run --plan quick --jobs 2
    """
    chosen, left_out = _only(PLANS[known(plan, PLANS, "plan")], contender, task, comparison).resolved(all_tasks())
    for line in left_out:
        console.print(f"left out: {line}", soft_wrap=True)
    url = storage or _embedded(plan)
    shared = Storage(url, plan, _waiting(heartbeat))
    leader = Leader(chosen, Store(results / f"{plan}.parquet"), shared, all_tasks())
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a study in the background is ended by that
    workers = Workers(_count(jobs), url, plan, shared.waiting)
    try:
        _lead(leader, workers)
    except KeyboardInterrupt:
        console.print("interrupted; finished runs are kept, the same command goes on", soft_wrap=True)
        raise typer.Exit(130) from None
    finally:
        workers.end()
        shared.close()
    for where, error in leader.failures.items():
        console.print(f"failed: {where}: {error}", soft_wrap=True)
    if leader.failures:
        raise typer.Exit(1)


@app.command()
def work(
    plan: Annotated[str, PLAN] = "study",
    storage: Annotated[str | None, STORAGE] = None,
    jobs: Annotated[int | None, JOBS] = None,
    heartbeat: Annotated[int, HEARTBEAT] = 30,
) -> None:
    """Work on a study that 'hatam study run' leads, on this or on another machine, until it is finished.

    Example: hatam study work --plan study --storage postgresql://hatam@queue.example/hatam
    """
    workers = Workers(_count(jobs), storage or _embedded(plan), plan, _waiting(heartbeat))
    try:
        while workers.watch():
            time.sleep(0.5)
    except KeyboardInterrupt:
        console.print("interrupted; what was not finished is done by others", soft_wrap=True)
        raise typer.Exit(130) from None
    finally:
        workers.end()


@app.command()
def status(plan: Annotated[str, PLAN] = "study", storage: Annotated[str | None, STORAGE] = None) -> None:
    """Say how many runs of each open stage wait, are done or have failed.

    Example: hatam study status --plan quick
    """
    shared = Storage(storage or _embedded(plan), plan)
    shown = Table("stage", "waiting", "running", "complete", "failed", title=plan)
    for key in shared.noted("open") or []:
        shown.add_row(key, *map(str, counted(shared.stage(key)).values()))
    show(shown)
    console.print("finished" if shared.noted("finished") else "open")
    shared.close()


@app.command("time")
def time_(
    plan: Annotated[str, PLAN] = "study",
    results: Annotated[Path, RESULTS] = Path("results"),
    rounds: Annotated[int, typer.Option(min=3, help="Steps of each contender on each task.")] = 60,
) -> None:
    """Measure what a step of every contender costs on each task, in turns, and write PLAN-time.csv. On a quiet machine.

    Example: hatam study time --plan quick
    """
    import pandas as pd

    chosen, _ = PLANS[known(plan, PLANS, "plan")].resolved(all_tasks())
    measured = [timing.measure(all_tasks()[name], chosen.contenders or (), rounds) for name in chosen.tasks or ()]
    path = results / f"{plan}-time.csv"
    pd.concat(measured).to_csv(path, index=False, float_format="%.4g")
    console.print(f"step times: {path}", soft_wrap=True)


@app.command()
def table(
    plan: Annotated[str, PLAN] = "study",
    results: Annotated[Path, RESULTS] = Path("results"),
    update: Annotated[Path | None, typer.Option(help="Page with the lines <!-- PLAN:start --> and …:end -->.")] = None,
) -> None:
    """Print the results of a study as Markdown, or fill a page in. Figures go to figures/ beside the page, all numbers
    to PLAN.csv beside the records.

    Example: hatam study table --plan study --update docs/results.md
    """
    import pandas as pd

    from ..report import fill_in, tables
    from ..report import results as page

    records, times = Store(results / f"{plan}.parquet").read(), results / f"{plan}-time.csv"
    if not len(records):
        raise ValueError(
            f"there are no records in {results / plan}.parquet; begin with 'hatam study run --plan {plan}'"
        )
    tables.summary(records).to_csv(results / f"{plan}.csv", index=False, float_format="%.5g")
    folder = (update.parent if update else results) / "figures"
    text = page.render(records, pd.read_csv(times) if times.exists() else None, folder, "figures")
    if update is None:
        print(text)
    else:
        fill_in(update, plan, text)


def _only(plan: Plan, contenders: list[str] | None, tasks: list[str] | None, comparisons: list[str] | None) -> Plan:
    """The plan for some of its contenders, tasks and comparisons alone."""
    changed = {
        field: tuple(known(name, getattr(plan, field) or (), f"{field[:-1]} of the plan") for name in names)
        for field, names in (("contenders", contenders), ("tasks", tasks), ("comparisons", comparisons))
        if names
    }
    return replace(plan, **changed)  # type: ignore[arg-type]


def _embedded(plan: str) -> str:
    folder = Path("runs") / plan
    folder.mkdir(parents=True, exist_ok=True)
    return embedded(folder)


def _count(jobs: int | None) -> int:
    return (os.cpu_count() or 1) if jobs is None else jobs


def _waiting(heartbeat: int) -> Waiting:
    return Waiting(heartbeat=heartbeat, grace=4 * heartbeat, poll=min(2.0, heartbeat / 2))


def _lead(leader: Leader, workers: Workers) -> None:
    """Until the study is finished."""
    columns = TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task("contenders × tasks", total=len(leader.cells))
        while not leader.step():
            bars.update(bar, completed=leader.judged)
            workers.watch()
            time.sleep(leader.storage.waiting.poll)
        bars.update(bar, completed=leader.judged)


class Workers:
    """Some processes of this machine, one thread each; one that is killed is replaced.

    Args:
        count: of processes.
        url, name, waiting: of the storage.
    """

    def __init__(self, count: int, url: str, name: str, waiting: Waiting) -> None:
        self._arguments = (url, name, waiting)
        self._processes = [self._start() for _ in range(count)]

    def _start(self) -> SpawnProcess:
        process = multiprocessing.get_context("spawn").Process(target=worker_process, args=self._arguments)
        process.start()
        return process

    def watch(self) -> bool:
        """Replace workers that were killed; False when all have come to their end.

        Raises:
            RuntimeError: a worker ended with an error, which it has printed.
        """
        for index, process in enumerate(self._processes):
            if process.exitcode is None or process.exitcode == 0:
                continue
            if process.exitcode > 0:
                raise RuntimeError("a worker stopped, see above; finished runs are kept, the same command goes on")
            self._processes[index] = self._start()
        return any(process.exitcode is None for process in self._processes)

    def end(self) -> None:
        """End all of them; the runs that they are at are done again."""
        ended: Sequence[SpawnProcess] = [process for process in self._processes if process.exitcode is None]
        for process in ended:
            process.terminate()
        for process in ended:
            process.join(10)
            if process.exitcode is None:
                process.kill()
                process.join()


def worker_process(url: str, name: str, waiting: Waiting) -> None:
    """Work until the study is finished."""

    def leave(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt  # Optuna then knows that the run is not being done any more

    start_quietly()
    signal.signal(signal.SIGTERM, leave)
    try:
        do_runs(Storage(url, name, waiting), all_tasks())
    except KeyboardInterrupt:
        raise SystemExit(0) from None
    except (OSError, ValueError, RuntimeError) as error:
        print(f"hatam worker: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
