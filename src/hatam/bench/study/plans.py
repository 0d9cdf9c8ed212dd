"""Plans: what a study compares, and how many settings and seeds it spends on each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..contenders import CONTENDERS, known
from ..tasks import Task

SEARCH = tuple(f"search-{i}" for i in range(1, 8))
"""The stages that look for settings, one option at a time: on the same seeds, at the task's steps, and once for both
comparisons. A budget's last one fills up to the number of settings that everyone gets."""

STAGES = (*SEARCH, "select", "final", "sensitivity")
FIRST_SEED = {"search": 1000, "select": 2000, "final": 9000, "sensitivity": 4000}
"""Where the seeds of a stage begin. No stage may use as many as lie between two of them: no seed is in two stages."""

COMPARISONS = ("steps", "time")
TIME_UNIT = "sam"
"""In the comparison "time" everyone has the time that this contender takes for the task's steps."""


@dataclass(frozen=True)
class Budget:
    """What is spent on a contender on a task.

    Attributes:
        trials: how many values of an option each stage of the search tries at most; the first tries the defaults too.
        rounds: how many stages of the search there are, at most 7; the last fills up to ``settings``.
        finalists: the best of all, which stage "select" looks at again.
        seeds: of the search and each stage after it; 0 leaves the stage "sensitivity" out.
    """

    trials: int = 4
    rounds: int = len(SEARCH)
    finalists: int = 3
    seeds: Mapping[str, int] = field(
        default_factory=lambda: {"search": 2, "select": 6, "final": 20, "sensitivity": 2}, hash=False
    )

    @property
    def settings(self) -> int:
        """How many settings of a contender are tried on a task, whatever it has to tune."""
        return 1 + self.trials * self.rounds

    def check(self, where: str) -> None:
        """Raise a ``ValueError`` for a number out of range; ``where`` names the budget."""
        room = min(abs(a - b) for a in FIRST_SEED.values() for b in FIRST_SEED.values() if a != b)
        for stage, count in self.seeds.items():
            low = 0 if stage == "sensitivity" else 1
            if not low <= count < room:
                raise ValueError(f"seeds[{stage!r}]={count!r} of {where} is not in [{low}, {room})")
        if self.trials < 2 or self.trials % 2:
            raise ValueError(f"trials={self.trials!r} of {where} must be an even number of at least 2")
        if not 1 <= self.rounds <= len(SEARCH):
            raise ValueError(f"rounds={self.rounds!r} of {where} is not in [1, {len(SEARCH)}]")
        if not 1 <= self.finalists <= self.trials:
            raise ValueError(f"finalists={self.finalists!r} of {where} is not in [1, {self.trials}]")


@dataclass(frozen=True)
class Plan:
    """What a study does.

    Attributes:
        name: how the command line calls it.
        summary: one line for lists.
        tasks: names; None means every task whose data are there.
        contenders: names; None means all.
        comparisons: "steps" gives everyone the task's steps, "time" the time that SAM takes for them.
        budget: for every contender on a task, however many options it has.
        budgets: of tasks that have one of their own.
        factors: by which stage "sensitivity" changes an option of the winner.
        chunk: the most runs that a worker takes at a time.
    """

    name: str
    summary: str
    tasks: tuple[str, ...] | None = None
    contenders: tuple[str, ...] | None = None
    comparisons: tuple[str, ...] = COMPARISONS
    budget: Budget = Budget()
    budgets: Mapping[str, Budget] = field(default_factory=dict)
    factors: tuple[float, ...] = (0.25, 0.5, 2.0, 4.0)
    chunk: int = 6

    def budget_of(self, task: str) -> Budget:
        """What is spent on a contender on a task."""
        return self.budgets.get(task, self.budget)

    def seeds_of(self, stage: str, task: str) -> range:
        """The seeds of a stage on a task.

        Example:
            >>> slow = Budget(seeds={"search": 1, "select": 2, "final": 8, "sensitivity": 0})
            >>> Plan("p", "", budgets={"slow": slow}).seeds_of("final", "slow")
            range(9000, 9008)
        """
        stage = "search" if stage in SEARCH else stage
        return range(FIRST_SEED[stage], FIRST_SEED[stage] + self.budget_of(task).seeds[stage])

    def resolved(self, tasks: Mapping[str, Task]) -> tuple[Plan, list[str]]:
        """The plan with every name written out, and in words what is left out because its data are missing.

        Raises:
            ValueError: an unknown name, a task named here whose data are missing, or a number out of range.
        """
        self._check_numbers()
        for name in self.budgets:
            known(name, tasks, "task")
        left_out = []
        for name in tasks if self.tasks is None else self.tasks:
            reason = tasks[known(name, tasks, "task")].missing()
            if reason and self.tasks is not None:
                raise ValueError(f"task {name!r} of plan {self.name!r} cannot run: {reason}")
            if reason:
                left_out.append(f"{name}: {reason}")
        chosen = self.tasks or tuple(name for name in tasks if not tasks[name].missing())
        contenders = tuple(known(name, CONTENDERS, "contender") for name in self.contenders or CONTENDERS)
        for name in self.comparisons:
            known(name, COMPARISONS, "comparison")
        changed: dict[str, Any] = {"tasks": chosen, "contenders": contenders}
        return Plan(**{**vars(self), **changed}), left_out

    def _check_numbers(self) -> None:
        self.budget.check(f"plan {self.name!r}")
        for task, budget in self.budgets.items():
            budget.check(f"plan {self.name!r} on {task}")
        if self.chunk < 1:
            raise ValueError(f"chunk={self.chunk!r} of plan {self.name!r} must be at least 1")

    def as_json(self) -> dict[str, Any]:
        """For the file that says with which plan a study was begun; without the words."""
        return {key: list(x) if isinstance(x, tuple) else x for key, x in asdict(self).items() if key != "summary"}


def _by_name(plans: Iterable[Plan]) -> dict[str, Plan]:
    return {plan.name: plan for plan in plans}


SLOW = Budget(2, len(SEARCH), 2, {"search": 1, "select": 2, "final": 8, "sensitivity": 0})
"""For tasks on which a run takes long. Their seeds differ less than their settings."""

NOISY = replace(SLOW, seeds={**SLOW.seeds, "search": 2, "select": 6})
"""For such a task with few validation data: on one seed its search had settled on what test data did not bear out."""

TEN = (
    "digits",
    "digits-noise",
    "minilm",
    "mnist1d-mlp",
    "mnist1d-mlp-plain",
    "mnist1d-conv",
    "mnist1d-mlp-noise",
    "mnist1d-conv-noise",
    "bytes",
    "bytes-overfit",
)
"""The tasks of the study."""

PLANS = _by_name(
    [
        Plan(
            "full",
            "ten tasks and every contender; it says how long before it starts",
            tasks=TEN,
            # without AdamW's setting at β1 = 0, which is in AdamW's own search space
            contenders=tuple(name for name in CONTENDERS if name != "adamw-no-momentum"),
            budgets={"bytes": SLOW, "bytes-overfit": SLOW, "bytes-long": SLOW, "minilm": NOISY},
        ),
        Plan(
            "quick",
            "a first look on MNIST-1D, with too few settings and seeds for claims",
            tasks=("mnist1d-mlp", "mnist1d-conv"),
            contenders=("adamw", "sam", "msam", "hatam"),
            budget=Budget(2, 4, 2, {"search": 1, "select": 2, "final": 5, "sensitivity": 0}),
        ),
    ]
)
