"""The command ``hatam``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from . import running
from .contenders import CONTENDERS, parse
from .records import Run, Store
from .study.cli import app as study
from .tasks import Task, all_tasks, ready, source
from .terminal import as_table, plain_console, show
from .training import prepare

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Compare HATAM with its peers, over many seeds.\n\nExample: hatam compare --task mnist1d-mlp --seeds 5",
)
app.add_typer(study, name="study")
console = plain_console()


def main() -> None:
    """Run the command; an error of the user is one line, not a traceback."""
    try:
        app()
    except (ValueError, RuntimeError, OSError) as error:
        plain_console(stderr=True).print(f"hatam: {error}", soft_wrap=True)
        raise SystemExit(2) from None


@app.command()
def compare(
    task: Annotated[
        str, typer.Option(help="One of 'hatam tasks', or your own: ./file.py:TASK or module:TASK.")
    ] = "mnist1d-mlp",
    contender: Annotated[
        list[str] | None,
        typer.Option(help="NAME or NAME:option=value,…; give it once per contender. Default: all of them."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of seeds for each contender.")] = 5,
    first_seed: Annotated[int, typer.Option(min=0, help="The first of them.")] = 0,
    steps: Annotated[int | None, typer.Option(min=2, help="Steps of a run. Default: the task's.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Parallel processes. Default: the cores.")] = None,
    records: Annotated[Path, typer.Option(help="Folder of records.parquet, table and plots.")] = Path("runs"),
) -> None:
    """Train contenders on a task over several seeds and print what each reached and cost.

    Every run is recorded as soon as it ends, and a run that has a record is not done again: interrupt it and give the
    same command to go on.

    Example: hatam compare --task mnist1d-conv --contender adamw --contender hatam:gamma=0.1 --seeds 8
    """
    chosen, store = ready(task), Store(records)
    runs = [
        make_run(chosen, spec, seed, steps)
        for seed in range(first_seed, first_seed + seeds)
        for spec in contender or CONTENDERS
    ]
    running.refuse_twice([run for run in runs if run.seed == first_seed])
    todo = running.missing(runs, store)
    if len(todo) < len(runs):
        console.print(f"{len(runs) - len(todo)} of {len(runs)} runs have records already")
    _refuse_unusable(chosen, todo)
    failed = _run_with_progress(chosen, todo, store, jobs or os.cpu_count() or 1)
    _show(store, runs)
    for run, error in failed:
        console.print(f"failed: {run.label}, seed {run.seed}: {error}", soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def make_run(task: Task, spec: str, seed: int, steps: int | None = None) -> Run:
    """A run of ``spec`` with the task's budget."""
    contender, options = parse(spec, task.name)
    length = steps or task.steps
    code = source(task.name)
    return Run(task.name, spec, contender.name, options, seed, length, task.batch_size, task.warmup, source=code)


def _refuse_unusable(task: Task, runs: Sequence[Run]) -> None:
    """What a contender does not accept is said once, before anything is trained."""
    for run in {run.label: run for run in runs}.values():
        try:
            prepare(task, run)
        except (TypeError, ValueError) as error:
            raise ValueError(f"contender {run.label!r}: {error}") from error


def _run_with_progress(task: Task, runs: list[Run], store: Store, jobs: int) -> running.Failed:
    if not runs:
        return []
    task.data()  # once, before the workers all want it
    label = TextColumn("{task.description:32}", markup=False)
    with Progress(label, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console) as bars:
        totals = {label: sum(run.steps for run in runs if run.label == label) for label in {r.label: 0 for r in runs}}
        ids = {label: bars.add_task(label, total=steps) for label, steps in totals.items()}
        try:
            jobs = min(jobs, len(runs))
            with running.one_thread():
                return running.run_all(runs, store, jobs, lambda run, n: bars.advance(ids[run.label], n))
        except KeyboardInterrupt:
            bars.stop()
            console.print("interrupted; finished runs are kept, the same command goes on", soft_wrap=True)
            raise typer.Exit(130) from None


def _show(store: Store, runs: Sequence[Run]) -> None:
    """The table and the plots of these runs, by the labels that were asked for."""
    from .report import plots, tables  # slow to import

    labels = {run.key: run.label for run in runs}
    found = store.read()
    found = found[found["key"].isin(labels)]
    if not len(found):
        return
    found = found.assign(label=found["key"].map(labels))
    rows = tables.summary(found)
    first = rows.iloc[0]
    better = "higher" if first["higher_is_better"] else "lower"
    title = f"{first['task']}: {first['metric']}, {better} is better; mean ± 95% interval, paired by seed"
    show(as_table(tables.compared(rows)), title)
    for draw, kind in ((plots.curves, "curves"), (plots.cost, "cost")):
        path = draw(found, store.path.parent / f"{kind}-{file_name(first['task'])}")
        if path is not None:
            console.print(f"plot: {path}", soft_wrap=True)


def file_name(name: str) -> str:
    """A name as that of a file: what is neither letter, digit, ``_``, ``.`` nor ``-`` becomes ``-``.

    Example:
        >>> file_name("../my task.py:TASK")
        'my-task-py-TASK'
    """
    return "-".join("".join(char if char.isalnum() or char in "_-" else " " for char in name).split())[-100:] or "_"


@app.command()
def table(
    records: Annotated[Path, typer.Argument(metavar="RECORDS", help="A Parquet file, or the folder of one.")],
    csv: Annotated[bool, typer.Option(help="All numbers as CSV instead of a table for each task.")] = False,
) -> None:
    """Print the tables of records as Markdown.

    Example: hatam table runs/demo
    """
    from .report import tables

    rows = tables.summary(Store(records).read())
    if csv:
        print(rows.to_csv(index=False, float_format="%.6g"), end="")
        return
    for (comparison, task, metric), group in rows.groupby(["comparison", "task", "metric"], sort=False):
        where = f", equal {comparison}" if comparison else ""
        print(f"{task}, {metric}{where}\n\n{tables.markdown(tables.compared(group))}\n")


@app.command()
def report(
    records: Annotated[Path, typer.Argument(metavar="RECORDS", help="A Parquet file, or the folder of one.")] = Path(
        "runs"
    ),
    out: Annotated[Path, typer.Option(help="Folder of the page.")] = Path("runs/report"),
) -> None:
    """Render records into one page, index.html, with figures and summary.csv beside it.

    Example: hatam report results/study.parquet --out runs/report
    """
    from .report import page

    path = page.write(Store(records).read(), records.name, out)
    console.print(f"report: {path}", soft_wrap=True)


@app.command()
def tasks() -> None:
    """List the tasks, and the options with which AdamW begins there if they are others. Example: hatam tasks"""
    for task in all_tasks().values():
        console.print(f"{task.name:20}{task.summary}", soft_wrap=True)
        if task.options:
            console.print(f"{'':20}{_listed(task.options)}", soft_wrap=True)
        if missing := task.missing():
            console.print(f"{'':20}cannot run: {missing}", soft_wrap=True)


@app.command()
def contenders() -> None:
    """List the contenders and their options. Example: hatam contenders"""
    for contender in CONTENDERS.values():
        console.print(f"{contender.name:20}{contender.summary} ({contender.source})", soft_wrap=True)
        console.print(f"{'':20}{_listed(contender.every)}", soft_wrap=True)


def _listed(options: object) -> str:
    return ", ".join(f"{key}={value}" for key, value in dict(options).items())  # type: ignore[call-overload]
