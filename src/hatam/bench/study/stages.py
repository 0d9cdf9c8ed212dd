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
from .plans import COMPARISONS, SOBOL_SEED, Plan
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
        steps: of every run but those of stage "tune", which have the task's.
    """

    task: Task
    contender: str
    comparison: str
    steps: int

    @property
    def name(self) -> str:
        return f"{self.task.name}/{self.contender}/{self.comparison}"

    def key(self, stage: str) -> str:
        """What the queue calls a stage of it. Both comparisons share the tuning."""
        return f"{stage}/{replace(self, comparison=COMPARISONS[0]).name if stage == 'tune' else self.name}"


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
        return [{}]
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.QMCSampler(qmc_type="sobol", scramble=True, seed=SOBOL_SEED)
    study = optuna.create_study(sampler=sampler)
    any_trial = optuna.create_trial(value=0.0)
    return [sampler.sample_relative(study, any_trial, dict(space)) for _ in range(count)]


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
    steps = task.steps if stage == "tune" else cell.steps
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


def settings_of(cell: Cell, plan: Plan, stage: str, spaces: Spaces, results: Results) -> list[Setting]:
    """What a stage looks at: empty where the stages before it gave nothing to look at, because all of it failed.

    Args:
        cell: of which.
        plan: how many.
        stage: one whose predecessors are done.
        spaces: where to tune.
        results: gives the record of a run, None where it failed.
    """
    if stage == "tune":
        space = spaces.space(cell.contender, cell.task.name)
        points = quasi_random(space, plan.budget_of(cell.task.name).settings)
        return [Setting(point, spaces.complete(cell.contender, cell.task.name, point)) for point in points]
    if stage == "select":
        tried = settings_of(cell, plan, "tune", spaces, results)
        return best(cell, plan, ("tune",), tried, results)[: plan.budget_of(cell.task.name).finalists]
    finalists = settings_of(cell, plan, "select", spaces, results)
    seen = ("tune", "select") if cell.steps == cell.task.steps else ("select",)
    winner = best(cell, plan, seen, finalists, results)[:1]
    if stage == "final" or not winner:
        return winner
    if cell.comparison != "steps":
        return []
    return [*winner, *(Setting(params, options) for params, options in variations(winner[0].options, plan.factors))]


def best(
    cell: Cell, plan: Plan, stages: tuple[str, ...], settings: Sequence[Setting], results: Results
) -> list[Setting]:
    """Settings by their mean validation over all runs of these stages, the best first; without those that failed."""
    scored = []
    for index, setting in enumerate(settings):
        found = [results(run) for stage in stages for run in runs_of(cell, plan, stage, setting.options)]
        if None not in found:
            mean = fmean(score(record, cell.task) for record in found if record is not None)
            scored.append((-mean, index, setting))
    return [setting for _, _, setting in sorted(scored, key=lambda item: item[:2])]
