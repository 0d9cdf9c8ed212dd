"""What each stage of a cell runs, as pure functions of the plan and of the records so far."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from ..contenders import CONTENDERS, SHARED_SPACE, parse, space
from ..records import Record, Run
from ..spaces import nearest
from ..tasks import Task
from .plans import Plan

Options = dict[str, Any]


class Cell(NamedTuple):
    """One contender on one task."""

    task: Task
    contender: str

    @property
    def name(self) -> str:
        return f"{self.task.name}/{self.contender}"

    @property
    def lengths(self) -> tuple[int, ...]:
        """The numbers of steps that a run may have: the task's, and as many as take SAM's gradients for these.

        A contender with SAM's gradients per step has one length.
        """
        longest = round(self.task.steps * CONTENDERS["sam"].gradients / CONTENDERS[self.contender].gradients)
        return (self.task.steps,) if longest == self.task.steps else (self.task.steps, longest)

    def run(self, stage: str, comparison: str, options: Options, seed: int, steps: int) -> Run:
        """A run of it."""
        task, name = self.task, self.contender
        return Run(task.name, name, name, options, seed, steps, task.batch_size, task.warmup, comparison, stage)


def score(record: Mapping[str, Any], task: Task) -> float:
    """Validation score of a run, the better the higher; −inf where it diverged."""
    validation = float(record["validation"])
    if record["status"] == "diverged" or not math.isfinite(validation):
        return -math.inf
    return validation if task.higher_is_better else -validation


def ranked(records: Iterable[Record], task: Task, runs: int = 1) -> list[tuple[Options, int]]:
    """The settings of records, as options and steps, by their mean validation score, the best first.

    Settings with an equal score keep their order. One with fewer records than ``runs`` lost some, and is left out; the
    search may have tried one several times, which counts for nothing.
    """
    scores: dict[str, list[float]] = {}
    for record in records:
        scores.setdefault(json.dumps([record["options"], record["steps"]]), []).append(score(record, task))
    means = {setting: fmean(found) for setting, found in scores.items() if len(found) >= runs}
    settings = (json.loads(setting) for setting in sorted(means, key=lambda each: -means[each]))
    return [(json.loads(options), steps) for options, steps in settings]


def starts(cell: Cell, plan: Plan, adamw: Sequence[Record]) -> list[Options]:
    """With what the search begins: the defaults, and AdamW's best settings with the contender's own options at theirs.

    So everyone is compared from where AdamW is, and no contender is ahead or behind by the luck of its search alone. A
    setting is tried once, also where AdamW's defaults are among its best.
    """
    ranges, defaults = space(cell.contender, cell.task.name), parse(cell.contender, cell.task.name)[1]
    best = ranked(adamw, cell.task)[: plan.budget_of(cell.task.name).finalists]
    given = [defaults]
    for options, _ in best:
        near = {name: nearest(ranges[name], options[name], defaults[name]) for name in SHARED_SPACE}
        if not any(same({**defaults, **near}, other) for other in given):
            given.append({**defaults, **near})
    return given


def same(one: Options, other: Options) -> bool:
    """Whether options are equal to rounding: 1 − β1 is what the search chooses."""
    return all(
        math.isclose(x, other[name], rel_tol=1e-9) if isinstance(x, float) else x == other[name]
        for name, x in one.items()
    )


def select(cell: Cell, plan: Plan, searched: Sequence[Record]) -> list[Run]:
    """The runs of stage "select": the best settings of the search on new seeds, at each length that is compared."""
    budget = plan.budget_of(cell.task.name)
    best = ranked(searched, cell.task)[: budget.finalists]
    lengths = cell.lengths if "gradients" in plan.comparisons else cell.lengths[:1]
    return [
        cell.run("select", "", options, seed, steps)
        for steps in lengths
        for options, _ in best
        for seed in budget.seeds("select")
    ]


def winner(cell: Cell, plan: Plan, comparison: str, selected: Sequence[Record]) -> tuple[Options, int] | None:
    """The options and the steps with which a cell is judged: the best mean validation score in stage "select".

    At equal steps only the task's number of steps is allowed. None where every setting lost a run.
    """
    allowed = [each for each in selected if comparison != "steps" or each["steps"] == cell.task.steps]
    return next(iter(ranked(allowed, cell.task, plan.budget_of(cell.task.name).select)), None)


def final(cell: Cell, plan: Plan, comparison: str, selected: Sequence[Record]) -> list[Run]:
    """The runs of stage "final": the winner on new seeds, with the test data."""
    best = winner(cell, plan, comparison, selected)
    if best is None:
        return []
    options, steps = best
    seeds = plan.budget_of(cell.task.name).seeds("final")
    return [cell.run("final", comparison, options, seed, steps) for seed in seeds]
