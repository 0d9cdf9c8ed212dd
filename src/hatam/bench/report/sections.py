"""The sections of the page: their figures and tables, and what would make those that are missing."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterable, Iterator
from pathlib import Path

from ..contenders import parse
from ..tasks import all_tasks
from . import figures, load, overall, sensitivity, tabulate
from .compared import Comparison, comparisons, order
from .load import Entry, Found, number
from .parts import Figure, Section, Sources, sources
from .style import looks


def build(found: Found, root: str) -> list[Section]:
    """Every section, in the order of the page.

    Args:
        found: what the folder of the records holds.
        root: how commands call that folder.
    """
    compared, odd = comparisons(found.entries)
    tune = [entry for entry in found.entries if entry.purpose == "tune"]
    studied = {entry.group for entry in tune if entry.stage}  # beside studies, what others tried is no tuning
    tune = [entry for entry in tune if entry.group in studied or not studied]
    labels = {c.label for each in compared for c in each.contestants} | {entry.contender for entry in tune}
    look = looks(sorted(labels, key=order))
    made_by = {id(each): _sources(each, root) for each in compared}
    groups = [list(group) for _, group in itertools.groupby(compared, key=lambda each: each.key)]
    p_values = tabulate.corrected(compared)

    results, ranks, cost, curves, shifts, sharp, profile, sens, tuned, lost = _empty(root)
    results.notes = odd
    for each in compared:
        source = made_by[id(each)]
        results.tables.append(tabulate.results(each, p_values, source))
        _add(cost, [figures.cost(each, look, source)])
        _add(curves, [figures.curves(each, look, source)])
        names = sorted({name for c in each.contestants for run in c.runs for name in run.shifts})
        _add(shifts, [figures.shift(each, name, look, source) for name in names])
        table = tabulate.corruption(each, source)
        shifts.tables += [table] if table else []
        _add(sharp, [figures.sharpness(each, measure, look, source) for measure in figures.MEASURES])
    for group in groups:
        whole = [run for each in group for c in each.contestants for run in c.runs]
        source = sources(whole, "\n".join(made_by[id(each)].command for each in group))
        _add(ranks, [overall.ranks(group, look, source)])
        _add(profile, [overall.profiles(group, look, source)])
    if tune:
        sens.figures = sensitivity.figures(tune, look, TUNE)
        tuned.tables = tabulate.tuning(tune, TUNE)
    if found.entries:
        lost.tables.append(tabulate.diverged(found.entries, "all of the above"))
    return [results, ranks, cost, curves, shifts, sharp, profile, sens, tuned, lost]


TUNE = "hatam study run"


def in_markdown(root: Path) -> str:
    """What every contender reached and cost on each task of a folder, and under its shifts, as Markdown.

    Raises:
        ValueError: there is no such folder.
    """
    compared, _ = comparisons(load.find(root).entries)
    p_values = tabulate.corrected(compared)
    tables = []
    for each in compared:
        source = _sources(each, root.as_posix())
        tables += [tabulate.results(each, p_values, source), tabulate.corruption(each, source)]
    return "\n".join(table.markdown() for table in tables if table is not None)


def _empty(root: str) -> Iterator[Section]:
    ready = {name: each for name, each in all_tasks().items() if not each.missing()}
    task = next(iter(ready))
    shifted = next((name for name, each in ready.items() if each.shifts), None)
    compare = f"hatam compare --task {{}} --records {shlex.quote(root)}"
    one = f"No records. This makes some: {compare.format(task)}"
    tasks = "No records of at least two contenders on the same seeds. This makes some: " + compare.format(task)
    tune = f"No records of tuning. This makes some: {TUNE}"
    shift = "No records of shifted data. " + (
        f"This makes some: {compare.format(shifted)}" if shifted else "They come with a task that has shifts."
    )
    yield Section("results", "Results", "What each contender reached on each task, and what it cost.", one)
    yield Section("ranks", "Mean rank over tasks", "Who is ahead when all tasks count alike.", tasks)
    yield Section(
        "cost", "Quality against cost", "Test score against measured time per step: further left is cheaper.", one
    )
    yield Section("curves", "Learning curves", "How the validation score came about.", one)
    yield Section(
        "shifts", "Shifted data", "How much is left where the world is no longer that of the training.", shift
    )
    yield Section("sharpness", "Sharpness", "How sharp the loss is where training ended, and the score there.", one)
    yield Section(
        "profile", "Time to a target", "How often each contender is the first there, and how far behind.", tasks
    )
    yield Section("sensitivity", "Sensitivity", "What a badly chosen option costs.", tune)
    yield Section("tuning", "Cost of tuning", "What was spent before the first final run.", tune)
    yield Section("diverged", "Diverged runs", "Diverging is a result: such runs count.", one)


def _add(section: Section, drawn: Iterable[Figure | None]) -> None:
    section.figures += [figure for figure in drawn if figure is not None]


def _sources(comparison: Comparison, root: str) -> Sources:
    """The records of a comparison, and the commands that make them: one for each number of steps."""
    runs = [run for c in comparison.contestants for run in c.runs]
    where = f"{root}/{comparison.group}" if comparison.group else root
    commands = []
    for steps in sorted({run.steps for run in runs}):
        here = [run for run in runs if run.steps == steps]
        seeds = {run.seed for run in here}
        words = ["hatam", "compare", "--task", comparison.task]
        for spec in sorted({_spec(run) for run in here}, key=order):
            words += ["--contender", spec]
        words += ["--seeds", str(max(seeds) - min(seeds) + 1), "--first-seed", str(min(seeds))]
        if not steps:  # in a training loop of one's own
            commands.append(f"hatam.bench.compare: {comparison.task}")
            continue
        commands.append(shlex.join([*words, "--steps", str(steps), "--records", where]))
    return sources(runs, "\n".join(commands))


def _spec(run: Entry) -> str:
    """What the command line calls a contender with these options; its label where that says it, or is unknown here, as
    a task in a file of somebody's is, which to look at would run it."""
    if ":" in run.task:
        return run.label
    try:
        labelled, usual = (parse(spec, run.task)[1] for spec in (run.label, run.contender))
    except ValueError:
        return run.label
    options = {key: number(value) if value == "inf" else value for key, value in run.options.items()}
    changed = ",".join(f"{key}={value}" for key, value in options.items() if usual.get(key) != value)
    return run.label if labelled == options else f"{run.contender}:{changed}".rstrip(":")


def summary(found: Found) -> list[str]:
    """What was read and what was not, in sentences."""
    entries = found.entries
    finals = sum(entry.purpose == "final" for entry in entries)
    tasks, seeds = {entry.task for entry in entries}, {entry.seed for entry in entries}
    return [
        f"Records of runs: {len(entries)}, of them {finals} final and {len(entries) - finals} of tuning; "
        f"tasks: {len(tasks)}; seeds: {len(seeds)}; diverged: {sum(entry.diverged for entry in entries)}.",
        f"Other JSON files, left out: {found.others}.",
        f"Damaged records, left out: {len(found.damaged)}" + (":" if found.damaged else "."),
    ]
