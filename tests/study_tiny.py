"""A study small enough for tests: also a script, ``python study_tiny.py study run …``, so that workers know it too."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import torch
from optuna.distributions import BaseDistribution, FloatDistribution

from hatam.bench.contenders import parse
from hatam.bench.study.plans import PLANS, Budget, Plan
from hatam.bench.tasks import Data, Split, Task, all_tasks


def load() -> Data:
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(3, 4, generator=generator)

    def split(samples: int) -> Split:
        y = torch.randint(3, (samples,), generator=generator)
        return Split(centres[y] + torch.randn(samples, 4, generator=generator), y)

    return Data(split(64), split(64), split(64))


def raising() -> torch.nn.Module:
    raise ArithmeticError("this model cannot be built")


def slow() -> torch.nn.Module:
    time.sleep(0.15)  # long enough to be interrupted
    return torch.nn.Linear(4, 3)


def make_task(name: str, **changed: Any) -> Task:
    base = all_tasks()["mnist1d-mlp"]
    fields = {"data": load, "model": lambda: torch.nn.Linear(4, 3), "steps": 6, "batch_size": 16, **changed}
    return dataclasses.replace(base, **{"name": name, "shifts": (), **fields})


TASKS = {
    task.name: task for task in (make_task("tiny"), make_task("slow", model=slow), make_task("raising", model=raising))
}


class Spaces(ModuleType):
    """Of lr alone, and so wide that some settings diverge."""

    @staticmethod
    def space(contender: str, task: str) -> dict[str, BaseDistribution]:
        return {"lr": FloatDistribution(1e-4, 1.0, log=True)}

    @staticmethod
    def complete(contender: str, task: str, params: Mapping[str, Any]) -> dict[str, Any]:
        return {**parse(contender, task)[1], **params}


SPACES = Spaces("hatam.bench.spaces")


def make_budget(trials: int = 2, finalists: int = 2, rounds: int = 1, **seeds: int) -> Budget:
    return Budget(trials, rounds, finalists, {"search": 2, "select": 3, "final": 3, "sensitivity": 0, **seeds})


def make_plan(name: str = "tiny", **changed: Any) -> Plan:
    fields: dict[str, Any] = {
        "tasks": ("tiny",),
        "contenders": ("adamw", "hatam"),
        "comparisons": ("steps",),
        "budget": make_budget(),
        "chunk": 2,
    }
    return Plan(name, "", **{**fields, **changed})


def install() -> None:
    """Make the command know the tiny tasks, plans and spaces. What starts processes imports this file in them too."""
    all_tasks().update(TASKS)
    sys.modules["hatam.bench.spaces"] = SPACES
    for plan in (
        make_plan(),
        make_plan("slow", tasks=("slow",), contenders=("adamw",)),
        make_plan("partly", tasks=("tiny", "raising"), contenders=("adamw",)),
        make_plan("unknown", tasks=("tinny",)),
    ):
        PLANS[plan.name] = plan


if __name__ in ("__main__", "__mp_main__"):
    install()
if __name__ == "__main__":
    from hatam.bench.cli import main  # not in the workers: it is slow to import

    main()
