"""Tasks: what is trained, on which data, for how long, and how it is judged. One file here is one family of tasks.

A module in this package that has a list ``TASKS`` is found by itself.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple

from torch import Tensor, nn


class Split(NamedTuple):
    """Inputs and targets, first axis: samples."""

    x: Tensor
    y: Tensor


class Data(NamedTuple):
    """The fixed splits of a task. Validation is for choosing, test is for reporting."""

    train: Split
    validation: Split
    test: Split


@dataclass(frozen=True)
class Shift:
    """One way in which the world may differ from the data of the training, graded in severity.

    Attributes:
        name: what changes, for instance "noise".
        severities: from mild to severe, in a unit of its own.
        split: the test data at a severity; deterministic.
    """

    name: str
    severities: tuple[float, ...]
    split: Callable[[float], Split]


@dataclass(frozen=True)
class Task:
    """A data set, a model, a loss, a metric and a budget.

    Attributes:
        name: how the command line calls it.
        summary: one line for lists.
        data: loads the splits; deterministic, and cheap after the first call on a machine.
        model: builds the model; random only through torch's global generator.
        loss: ``loss(outputs, targets)`` gives one loss per sample, shape ``(n,)``.
        metric: ``metric(outputs, targets)`` gives one score per sample, shape ``(n,)``, whose mean is reported.
        metric_name: what the mean of the metric is called.
        higher_is_better: of the metric.
        steps: optimization steps of a run.
        batch_size: samples of a step, drawn without replacement within an epoch.
        warmup: share of the steps over which lr rises linearly; then it falls to 0 along a cosine.
        shifts: test data as the world may change it.
        options: defaults of every contender that differ on this task, such as lr; a contender's own for the task win.
        sharpness_samples: training samples on which λ_max is measured, the first ones; 0: it is not, for its cost.
        missing: in words what is needed and not there, such as a data set in a local folder; None where all is there.
    """

    name: str
    summary: str
    data: Callable[[], Data]
    model: Callable[[], nn.Module]
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Callable[[Tensor, Tensor], Tensor]
    metric_name: str
    steps: int
    batch_size: int
    warmup: float = 0.05
    higher_is_better: bool = True
    shifts: tuple[Shift, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    sharpness_samples: int = 1000
    missing: Callable[[], str | None] = lambda: None


@cache
def all_tasks() -> dict[str, Task]:
    """Every task of this package by name."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return {task.name: task for module in modules for task in getattr(module, "TASKS", [])}
