"""The command ``hatam``."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from . import records, report, runner
from .contenders import CONTENDERS, parse
from .records import Run
from .report.compared import Comparison
from .report.load import Entry, Found
from .study.cli import app as study
from .tasks import Task, all_tasks, ready, source
from .terminal import plain_console, show
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
    records_: Annotated[Path, typer.Option("--records", help="Folder of the records.")] = Path("runs"),
    out: Annotated[Path | None, typer.Option(help="Folder of the plot. Default: that of the records.")] = None,
) -> None:
    """Train contenders on a task over several seeds and print what each reached and cost.

    Every run is recorded as soon as it ends, and a run that has a record is not done again: interrupt it and give the
    same command to go on.

    Example: hatam compare --task mnist1d-conv --contender adamw --contender hatam:gamma=0.1 --seeds 8
    """
    chosen = ready(task)
    runs = [
        make_run(chosen, spec, seed, steps)
        for seed in range(first_seed, first_seed + seeds)
        for spec in contender or CONTENDERS
    ]
    runner.refuse_twice([run for run in runs if run.seed == first_seed], records_)
    todo = runner.missing(runs, records_)
    if len(todo) < len(runs):
        console.print(f"{len(runs) - len(todo)} of {len(runs)} runs have records already")
    _refuse_unusable(chosen, todo)
    failed = _run_with_progress(chosen, todo, records_, jobs or os.cpu_count() or 1)
    failures = {id(run) for run, _ in failed}
    entries = [_entry(run, records_) for run in runs if id(run) not in failures]
    for compared in report.comparisons(entries)[0]:
        _show(chosen, compared)
        for path in report.draw(compared, out or records_):
            console.print(f"plot: {path}", soft_wrap=True)
    for run, error in failed:
        console.print(f"failed: {run.label}, seed {run.seed}: {error}", soft_wrap=True)
    if failed:
        raise typer.Exit(1)


def _entry(run: Run, root: Path) -> Entry:
    """A run as its record tells it, by the name that was asked for."""
    path = run.path(root)
    return replace(report.entry(path.relative_to(root), records.read(path)), label=run.label)


def _refuse_unusable(task: Task, runs: Sequence[Run]) -> None:
    """What a contender does not accept is said once, before anything is trained."""
    for run in {run.label: run for run in runs}.values():
        try:
            prepare(task, run)
        except (TypeError, ValueError) as error:
            raise ValueError(f"contender {run.label!r}: {error}") from error


@app.command()
def table(
    records_: Annotated[Path, typer.Argument(metavar="RECORDS", help="Folder of the records.")],
    update: Annotated[
        Path | None, typer.Option(help="A Markdown file with the lines <!-- TASK:start --> and <!-- TASK:end -->.")
    ] = None,
    plots: Annotated[Path | None, typer.Option(help="Also draw the plots into this folder.")] = None,
) -> None:
    """Print the tables of committed records as Markdown, or put them into a document.

    Example: hatam table runs/demo
    """
    found = report.find(records_)
    _say_damaged(found)
    texts: dict[str, list[str]] = {}  # by task, which may have been run in several folders or for several times
    for compared in report.comparisons(found.entries)[0]:
        texts.setdefault(compared.task, []).append(f"{compared.title}\n\n{report.markdown(compared)}")
        if plots is not None:
            report.draw(compared, plots)
    if update is None:
        for parts in texts.values():
            console.print("\n\n".join(parts), "\n", soft_wrap=True)
        return
    page = update.read_text(encoding="utf-8")
    marked = [task for task in texts if f"<!-- {task}:start -->" in page]
    if not marked:
        raise ValueError(
            f"{update} has no line <!-- TASK:start --> of a task in {records_}: {', '.join(texts) or 'none'}"
        )
    for task in marked:
        report.fill_in(update, task, "\n\n".join(texts[task]))


@app.command("report")
def report_(
    records_: Annotated[Path, typer.Argument(metavar="RECORDS", help="Folder of the records.")] = Path("runs"),
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("runs/report"),
) -> None:
    """Render records into one page, index.html, with its figures and tables as files beside it.

    Example: hatam report results/full --out runs/report
    """
    found = report.write(records_, out)
    _say_damaged(found)
    counted = f"{len(found.entries)} records of runs, {found.others} other JSON files left out"
    console.print(f"report: {out / 'index.html'} ({counted})", soft_wrap=True)


def _say_damaged(found: Found) -> None:
    for path, what in found.damaged:
        console.print(f"damaged and left out: {path}: {what}", soft_wrap=True)


@app.command()
def tasks() -> None:
    """List the tasks, and the options with which AdamW begins there if they are others. Example: hatam tasks"""
    for task in all_tasks().values():
        console.print(f"{task.name:20}{task.summary}", soft_wrap=True)
        if task.options:
            options = ", ".join(f"{key}={value}" for key, value in task.options.items())
            console.print(f"{'':20}{options}", soft_wrap=True)
        if missing := task.missing():
            console.print(f"{'':20}cannot run: {missing}", soft_wrap=True)


@app.command()
def contenders() -> None:
    """List the contenders and their options. Example: hatam contenders"""
    for contender in CONTENDERS.values():
        console.print(f"{contender.name:20}{contender.summary} ({contender.source})", soft_wrap=True)
        options = ", ".join(f"{key}={value}" for key, value in contender.every.items())
        console.print(f"{'':20}{options}", soft_wrap=True)
        for task, changed in contender.by_task.items():
            there = ", ".join(f"{key}={value}" for key, value in changed.items())
            console.print(f"{'':20}on {task}: {there}", soft_wrap=True)


def make_run(task: Task, spec: str, seed: int, steps: int | None = None) -> Run:
    """A run of ``spec`` with the task's budget."""
    contender, options = parse(spec, task.name)
    return Run(
        task.name,
        spec,
        contender.name,
        options,
        seed,
        steps or task.steps,
        task.batch_size,
        task.warmup,
        source=source(task.name),
    )


def _run_with_progress(task: Task, runs: list[Run], root: Path, jobs: int) -> list[tuple[Run, str]]:
    if not runs:
        return []
    task.data()  # once, before the workers all want it
    label = TextColumn("{task.description:32}", markup=False)
    with Progress(label, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console) as bars:
        total = {label: sum(run.steps for run in runs if run.label == label) for label in {r.label: 0 for r in runs}}
        ids = {label: bars.add_task(label, total=steps) for label, steps in total.items()}
        try:
            jobs = min(jobs, len(runs))
            return runner.run_all(runs, root, jobs, lambda run, n: bars.advance(ids[run.label], n))
        except KeyboardInterrupt:
            bars.stop()
            console.print("interrupted; finished runs are kept, the same command goes on", soft_wrap=True)
            raise typer.Exit(130) from None


def _show(task: Task, compared: Comparison) -> None:
    shown = Table(title=f"{task.name}: {task.metric_name}, mean ± 95% interval; differences paired by seed")
    for index, column in enumerate(report.columns(compared)):
        shown.add_column(column, justify="left" if index == 0 else "right")
    for contestant in compared.contestants:
        shown.add_row(*report.cells(compared, contestant))
    show(shown)
