"""What each stage runs, as pure functions of the plan and of the results so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, NamedTuple, Protocol, cast

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from ..contenders import CONTENDERS
from ..records import Run
from ..tasks import Task
from .plans import COMPARISONS, SEARCH, Plan
from .sensitivity import variations

ORDER = ("lr", "", "beta1", "weight_decay")
"""In which order the search takes options; the second place is for all that are not named here."""

Options = dict[str, Any]
Record = dict[str, Any]
Results = Callable[[Run], "Record | None"]


class Spaces(Protocol):
    """Where the search spaces come from: the module ``hatam.bench.spaces``, or a stand-in for it."""

    def space(self, contender: str, task: str) -> dict[str, BaseDistribution]: ...
    def complete(self, contender: str, task: str, params: Mapping[str, Any]) -> Options: ...


@dataclass(frozen=True)
class Cell:
    """One contender on one task in one comparison: what is tuned and judged for itself.

    Attributes:
        task: the task.
        contender: its name.
        comparison: "steps" or "time".
        steps: of every run but those of the search, which have the task's.
    """

    task: Task
    contender: str
    comparison: str
    steps: int

    @property
    def name(self) -> str:
        return f"{self.task.name}/{self.contender}/{self.comparison}"

    def key(self, stage: str) -> str:
        """What the queue calls a stage of it. Both comparisons share the search."""
        return f"{stage}/{replace(self, comparison=COMPARISONS[0]).name if stage in SEARCH else self.name}"


class Setting(NamedTuple):
    """A point of the search space, and the complete options that it stands for."""

    params: dict[str, Any]
    options: Options


class Job(NamedTuple):
    """Runs of one setting that a worker does together: one trial of the queue."""

    params: dict[str, Any]
    runs: list[Run]


def neighbours(
    distribution: BaseDistribution, value: Any, count: int, visit: int, tried: Collection[Any] = ()
) -> list[Any]:
    """Other values of an option: around this one by factors, half of them below; of choices the first not tried yet.

    Args:
        distribution: its range or choices.
        value: where the search is.
        count: at most so many; but of choices all that are left where the search comes by again.
        visit: how often the search has come by before; later factors are smaller.
        tried: values that any setting had so far, of which no choice is tried again, wherever the search went since.

    Example:
        >>> neighbours(FloatDistribution(1e-3, 1.0, log=True), 0.4, 4, visit=0)
        [0.2, 0.1, 0.8, 1.0]
        >>> neighbours(CategoricalDistribution([0.0, 0.5, 0.9]), 0.5, 4, visit=0)
        [0.0, 0.9]
        >>> neighbours(CategoricalDistribution([0.0, 0.5, 0.8, 0.9]), 0.5, 2, visit=1, tried=[0.9, 0.0, 0.5])
        [0.8]
    """
    if isinstance(distribution, CategoricalDistribution):
        others = [choice for choice in distribution.choices if choice not in (value, *tried)]
        return others[:count] if visit == 0 else others
    bounds = cast(FloatDistribution, distribution)
    factor = neighbour_factor(count, visit)
    powers = [sign * power for sign in (-1, 1) for power in range(1, count // 2 + 1)]
    found = [min(max(value * factor**power, bounds.low), bounds.high) for power in powers]
    return [x for x in dict.fromkeys(found) if x != value]


def neighbour_factor(count: int, visit: int) -> float:
    """The step from a value to its neighbours."""
    return ((2.0, 1.5) if count > 2 else (3.0, 1.7))[min(visit, 1)]


def score(record: Record, task: Task) -> float:
    """Validation score of a run, the better the higher; −inf where it diverged."""
    validation = float(record["result"]["validation"])
    if record["result"]["status"] == "diverged" or not math.isfinite(validation):
        return -math.inf
    return validation if task.higher_is_better else -validation


def runs_of(cell: Cell, plan: Plan, stage: str, options: Options) -> list[Run]:
    """The runs of one setting in a stage."""
    task = cell.task
    purpose = "final" if stage == "final" else "tune"
    steps = task.steps if stage in SEARCH else cell.steps
    return [
        Run(task.name, cell.contender, cell.contender, options, seed, steps, task.batch_size, task.warmup, purpose)
        for seed in plan.seeds_of(stage, task.name)
    ]


def jobs_of(cell: Cell, plan: Plan, stage: str, settings: Sequence[Setting]) -> list[Job]:
    """The runs of all settings in a stage, in portions for the workers."""
    return [
        Job(setting.params, runs[start : start + plan.chunk])
        for setting in settings
        for runs in [runs_of(cell, plan, stage, setting.options)]
        for start in range(0, len(runs), plan.chunk)
    ]


def settings_of(
    cell: Cell,
    plan: Plan,
    stage: str,
    spaces: Spaces,
    results: Results,
    earlier: Callable[[str], list[Setting]],
) -> list[Setting]:
    """What a stage looks at: empty where the stages before it gave nothing to look at, because all of it failed.

    Args:
        cell: of which.
        plan: how many.
        stage: one whose predecessors are done.
        spaces: where to tune.
        results: gives the record of a run, None where it failed.
        earlier: gives what a stage before this one looked at.
    """
    if stage in SEARCH[plan.budget_of(cell.task.name).rounds :]:
        return []
    if stage in SEARCH:
        points = _search(cell, plan, SEARCH.index(stage), spaces, results, earlier)
        return [Setting(point, spaces.complete(cell.contender, cell.task.name, point)) for point in points]
    if stage == "select":
        tried = [setting for each in SEARCH for setting in earlier(each)]
        return best(cell, plan, SEARCH[:1], tried, results)[: plan.budget_of(cell.task.name).finalists]
    seen = (*SEARCH[:1], "select") if cell.steps == cell.task.steps else ("select",)
    winner = best(cell, plan, seen, earlier("select"), results)[:1]
    if stage == "final" or not winner:
        return winner
    if cell.comparison != "steps":
        return []
    return [*winner, *(Setting(params, options) for params, options in variations(winner[0].options, plan.factors))]


def _search(
    cell: Cell,
    plan: Plan,
    turn: int,
    spaces: Spaces,
    results: Results,
    earlier: Callable[[str], list[Setting]],
) -> list[dict[str, Any]]:
    """Other values of one option where the search is: lr first, then what the contender alone has, β1, weight decay,
    and from the beginning. It starts from the defaults and is at the best setting so far. The last stage fills up.
    """
    space = spaces.space(cell.contender, cell.task.name)
    usual = {**CONTENDERS[cell.contender].every, **spaces.complete(cell.contender, cell.task.name, {})}
    tried = [setting for stage in SEARCH[:turn] for setting in earlier(stage)]
    found = best(cell, plan, SEARCH[:1], tried, results) if tried else []
    if tried and not found:
        return []  # all of it failed
    here = found[0].params if found else {key: usual[key] for key in space}
    points = [] if tried else [here]
    options = sorted(space, key=lambda key: ORDER.index(key) if key in ORDER else 1)
    options = [key for key in options if neighbours(space[key], here[key], 2, 0)]
    known, budget = [setting.params for setting in tried], plan.budget_of(cell.task.name)
    if known and turn == budget.rounds - 1:
        for point in rest(space, options, here, known, budget.trials):
            if point not in (*known, *points) and len(known) + len(points) < budget.settings:
                points.append(point)
        return points
    if options:
        option, visit = options[turn % len(options)], turn // len(options)
        values = neighbours(space[option], here[option], budget.trials, visit, [point[option] for point in known])
        points += [{**here, option: value} for value in values]
    return [point for point in points if point not in known]


def rest(
    space: Mapping[str, BaseDistribution],
    options: Sequence[str],
    here: dict[str, Any],
    tried: Sequence[Mapping[str, Any]],
    count: int,
) -> Iterator[dict[str, Any]]:
    """What is left to look at around the best setting, the most promising first.

    That is beyond the values of an option that were tried where the best is the least or the largest of them; then
    choices that were never tried; then values that are nearer by. Some may be known.
    """
    ranges = {key: d for key in options if isinstance(d := space[key], FloatDistribution)}
    factor = neighbour_factor(count, 0)
    for power in (1, 2):
        for key, d in ranges.items():
            values = [setting[key] for setting in tried]
            for edge, sign in ((min(values), -1), (max(values), 1)):
                if here[key] == edge:
                    yield {**here, key: min(max(edge * factor ** (sign * power), d.low), d.high)}
    for key in options:
        for choice in getattr(space[key], "choices", ()):
            if all(setting[key] != choice for setting in tried):
                yield {**here, key: choice}
    for nearer in (1.25, 1.6, 1.1):
        for key, d in ranges.items():
            yield from ({**here, key: x} for x in (here[key] / nearer, here[key] * nearer) if d.low <= x <= d.high)


def best(
    cell: Cell, plan: Plan, stages: tuple[str, ...], settings: Sequence[Setting], results: Results
) -> list[Setting]:
    """Settings by their mean validation over all runs of these stages, the best first; without those that failed."""
    ranked = sorted(scores(cell, plan, stages, settings, results), key=lambda item: -item[0])
    return [setting for _, setting in ranked]


def scores(
    cell: Cell, plan: Plan, stages: tuple[str, ...], settings: Sequence[Setting], results: Results
) -> list[tuple[float, Setting]]:
    """The mean validation of settings over all runs of these stages, higher better; without those that failed."""
    scored = []
    for setting in settings:
        found = [results(run) for stage in stages for run in runs_of(cell, plan, stage, setting.options)]
        if None not in found:
            scored.append((fmean(score(record, cell.task) for record in found if record is not None), setting))
    return scored
