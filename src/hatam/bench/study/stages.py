"""What each stage runs, as pure functions of the plan and of the results so far."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, NamedTuple, Protocol

import optuna
from optuna.distributions import BaseDistribution

from ..records import Run
from ..tasks import Task
from .plans import COMPARISONS, SEARCH, SEARCH_SEED, Plan
from .sensitivity import variations

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


def quasi_random(space: Mapping[str, BaseDistribution], count: int) -> list[dict[str, Any]]:
    """The first points of a scrambled Sobol sequence in a space; always the same.

    Example:
        >>> lr = optuna.distributions.FloatDistribution(1e-3, 1e-1, log=True)
        >>> low, high = sorted(point["lr"] for point in quasi_random({"lr": lr}, 2))
        >>> low < 1e-2 < high
        True
    """
    if not space:
        return [dict[str, Any]()][:count]
    study = _study(lambda: optuna.samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=SEARCH_SEED))
    any_trial = optuna.create_trial(value=0.0)
    return [study.sampler.sample_relative(study, any_trial, dict(space)) for _ in range(count)]


def promising(
    space: Mapping[str, BaseDistribution], tried: Sequence[tuple[dict[str, Any], float]], count: int
) -> list[dict[str, Any]]:
    """Points that may score higher than those that were tried, by a Gaussian process that Optuna fits to their scores.

    Example:
        >>> lr = optuna.distributions.FloatDistribution(1e-4, 1.0, log=True)
        >>> tried = [({"lr": 10.0**-i}, -abs(i - 2.0)) for i in range(5)]
        >>> all(1e-3 < point["lr"] < 1e-1 for point in promising({"lr": lr}, tried, 2))
        True
    """
    worst = min((value for _, value in tried if math.isfinite(value)), default=0.0)
    study = _study(lambda: optuna.samplers.GPSampler(seed=SEARCH_SEED, n_startup_trials=0))
    for params, value in tried:
        study.add_trial(optuna.create_trial(params=params, distributions=dict(space), value=max(value, worst)))
    return [study.ask(dict(space)).params for _ in range(count if space else 0)]


def _study(make: Callable[[], optuna.samplers.BaseSampler]) -> optuna.Study:
    """In memory, and without words; a higher value is better."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.create_study(sampler=make(), direction="maximize")


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
    budget = plan.budget_of(cell.task.name)
    if stage in SEARCH:
        points = _search(cell, plan, stage, spaces, results, earlier)
        return [Setting(point, spaces.complete(cell.contender, cell.task.name, point)) for point in points]
    if stage == "select":
        tried = [setting for each in SEARCH for setting in earlier(each)]
        return best(cell, plan, SEARCH[:1], tried, results)[: budget.finalists]
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
    stage: str,
    spaces: Spaces,
    results: Results,
    earlier: Callable[[str], list[Setting]],
) -> list[dict[str, Any]]:
    """The defaults first, so that nobody is tuned to less than what its users try first, and quasi-random points; then
    points that follow from how those scored."""
    budget, space = plan.budget_of(cell.task.name), spaces.space(cell.contender, cell.task.name)
    if stage == SEARCH[0]:
        usual = spaces.complete(cell.contender, cell.task.name, {})
        return [{key: usual[key] for key in space}, *quasi_random(space, budget.settings - 1)]
    scored = [(setting.params, value) for value, setting in scores(cell, plan, SEARCH[:1], earlier(SEARCH[0]), results)]
    return promising(space, scored, budget.refined) if scored else []


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
