"""A study small enough for tests: also a script, ``python study_tiny.py study run …``, so that workers know it too."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import torch

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
BUDGET = Budget(trials=4, finalists=2, select=2, final=3)


def make_plan(name: str = "tiny", **changed: Any) -> Plan:
    fields: dict[str, Any] = {"tasks": ("tiny",), "contenders": ("adamw", "hatam"), "budget": BUDGET}
    return Plan(name, "", **{**fields, **changed})


def install() -> None:
    """Make the command know the tiny tasks and plans. What starts processes imports this file in them too."""
    all_tasks().update(TASKS)
    for plan in (
        make_plan(),
        make_plan("slow", tasks=("slow",), contenders=("adamw",)),
        make_plan("partly", tasks=("tiny", "raising"), contenders=("adamw",)),
    ):
        PLANS[plan.name] = plan


if __name__ in ("__main__", "__mp_main__"):
    install()
if __name__ == "__main__":
    from hatam.bench.cli import main  # not in the workers: it is slow to import

    main()
