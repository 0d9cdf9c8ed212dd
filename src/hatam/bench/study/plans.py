"""Plans: what a study compares, and how many gradients and seeds it spends on each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ..contenders import CONTENDERS, known
from ..tasks import Task

COMPARISONS = ("steps", "gradients")
"""Everyone has the task's number of steps, or everyone has the gradients that SAM takes for them."""

BASE = "adamw"
"""Whose best settings everyone else's search begins with."""

FIRST_SEED = {"search": 1000, "select": 2000, "final": 9000}
"""Where the seeds of a stage begin. No seed is in two stages."""


@dataclass(frozen=True)
class Budget:
    """What is spent on a contender on a task.

    Attributes:
        trials: settings that the search tries, for a contender with one gradient per step. One with two tries half as
            many: the search costs everyone the same number of gradients. AdamW tries twice as many, because the search
            of everyone else begins with AdamW's best.
        finalists: the best of these; stage "select" looks at them again. Also how many of AdamW's best everyone else's
            search begins with.
        select, final: seeds of each of these stages.
    """

    trials: int = 48
    finalists: int = 5
    select: int = 4
    final: int = 20

    def trials_of(self, contender: str) -> int:
        """How many settings of a contender are tried.

        Example:
            >>> [Budget(trials=24).trials_of(name) for name in ("sam", "hatam", "adamw")]
            [12, 24, 48]
        """
        trials = 2 * self.trials if contender == BASE else self.trials
        return max(self.finalists + 1, int(trials / CONTENDERS[contender].gradients))

    def seeds(self, stage: str) -> range:
        """The seeds of a stage; the search has one."""
        count = {"search": 1, "select": self.select, "final": self.final}[stage]
        return range(FIRST_SEED[stage], FIRST_SEED[stage] + count)

    def check(self, where: str) -> None:
        """Raise a ``ValueError`` for a number out of range; ``where`` names the budget."""
        for name, low in {"trials": 1, "finalists": 1, "select": 1, "final": 2}.items():
            if not low <= getattr(self, name) < 1000:
                raise ValueError(f"{name}={getattr(self, name)!r} of {where} is not in [{low}, 1000)")
        if self.finalists >= self.trials:
            raise ValueError(f"finalists={self.finalists!r} of {where} is not in [1, trials={self.trials})")


@dataclass(frozen=True)
class Plan:
    """What a study does.

    Attributes:
        name: how the command line calls it; also of its folder and of its records.
        summary: one line for lists.
        tasks, contenders: names; None means all. The first come first.
        comparisons: of ``COMPARISONS``.
        budget: for every contender on a task.
        budgets: of tasks that have one of their own.
    """

    name: str
    summary: str
    tasks: tuple[str, ...] | None = None
    contenders: tuple[str, ...] | None = None
    comparisons: tuple[str, ...] = COMPARISONS
    budget: Budget = Budget()
    budgets: Mapping[str, Budget] = field(default_factory=dict)

    def budget_of(self, task: str) -> Budget:
        """What is spent on a contender on a task."""
        return self.budgets.get(task, self.budget)

    def resolved(self, tasks: Mapping[str, Task]) -> tuple[Plan, list[str]]:
        """The plan with every name written out, and in words what is left out because its data are missing.

        Raises:
            ValueError: an unknown name, a task named here whose data are missing, or a number out of range.
        """
        self.budget.check(f"plan {self.name!r}")
        for name, budget in self.budgets.items():
            budget.check(f"plan {self.name!r} on {known(name, tasks, 'task')}")
        for name in self.comparisons:
            known(name, COMPARISONS, "comparison")
        chosen, left_out = [], []
        for name in tasks if self.tasks is None else self.tasks:
            reason = tasks[known(name, tasks, "task")].missing()
            if reason and self.tasks is not None:
                raise ValueError(f"task {name!r} of plan {self.name!r} cannot run: {reason}")
            if reason:
                left_out.append(f"{name}: {reason}")
            else:
                chosen.append(name)
        contenders = tuple(known(name, CONTENDERS, "contender") for name in self.contenders or CONTENDERS)
        return replace(self, tasks=tuple(chosen), contenders=contenders), left_out


SLOW = Budget(trials=16, finalists=3, select=2, final=8)
"""For tasks on which a run takes long."""

TASKS = (
    "mnist1d-mlp",
    "mnist1d-mlp-noise",
    "digits",
    "digits-noise",
    "letter",
    "mnist1d-conv",
    "mnist1d-conv-noise",
    "mnist1d-mlp-plain",
    "fashion",
    "fashion-noise",
    "bytes",
    "bytes-overfit",
    "bytes-long",
)
CORE = ("adamw", "hatam", "schedule-free", "sam")

PLANS = {
    plan.name: plan
    for plan in (
        Plan(
            "study",
            "thirteen tasks and every contender",
            TASKS,
            (*CORE, *(name for name in CONTENDERS if name not in CORE)),
            budgets=dict.fromkeys(("fashion", "fashion-noise", "bytes", "bytes-overfit", "bytes-long"), SLOW),
        ),
        Plan(
            "quick",
            "a first look on MNIST-1D, with too few settings and seeds for claims",
            ("mnist1d-mlp", "mnist1d-conv"),
            CORE,
            ("steps",),
            Budget(trials=6, finalists=2, select=2, final=5),
        ),
    )
}
