"""Tasks: what is trained, on which data, for how long, and how it is judged. One file here is one family of tasks.

A module in this package that has a list ``TASKS`` is found by itself; a task of one's own is found by where it lies.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import os
import pkgutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
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
        curve_points: how often in a run validation is looked at.
        warmup: share of the steps over which lr rises linearly; then it falls to 0 along a cosine.
        shifts: test data as the world may change it.
        options: defaults of every contender that differ on this task, such as lr; a contender's own for the task win.
        sharpness: whether a finished run's is measured; not where that would cost more than the run.
        augment: ``augment(x, generator)`` gives the inputs of a batch as the step sees them, random only through the
            generator, which the run's seed sets: the same for all contenders. None trains on the inputs as they are.
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
    curve_points: int = 20
    higher_is_better: bool = True
    shifts: tuple[Shift, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    sharpness: bool = True
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None
    missing: Callable[[], str | None] = lambda: None


@cache
def all_tasks() -> dict[str, Task]:
    """Every task of this package by name."""
    modules = [importlib.import_module(f"{__name__}.{info.name}") for info in pkgutil.iter_modules(__path__)]
    return {task.name: task for module in modules for task in getattr(module, "TASKS", [])}


@cache
def find(name: str) -> Task:
    """A task by its name, or one of the user's own by where it lies.

    Args:
        name: of a task in this package; or ``package.module:attribute``, or ``path/to/file.py:attribute``, where the
            attribute is a :class:`Task` or a function without arguments that gives one. The task then has this name.

    Raises:
        ValueError: there is no such task, module, file or attribute, or it is not a task.

    Example:
        >>> find("hatam.bench.tasks.mnist1d:TASKS")  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ValueError: hatam.bench.tasks.mnist1d:TASKS is a list: it must be a hatam.bench.Task, or a function without ...
    """
    from ..contenders import known

    place, colon, attribute = name.rpartition(":")
    if not colon and name.endswith(".py"):
        raise ValueError(f"task {name!r} lacks the name of the task in that file: write {name}:TASK")
    if not colon:
        return all_tasks()[known(name, all_tasks(), "task")]
    module = _module(place)
    names = [
        key for key, value in vars(module).items() if not key.startswith("_") and not isinstance(value, ModuleType)
    ]
    task = getattr(module, known(attribute, names, f"name in {place}"))
    if callable(task):
        task = task()
    if not isinstance(task, Task):
        raise ValueError(
            f"{name} is a {type(task).__name__}: it must be a hatam.bench.Task, or a function without arguments that "
            "gives one"
        )
    return dataclasses.replace(task, name=name)


def ready(name: str) -> Task:
    """:func:`find`, of a task whose data are there.

    Raises:
        ValueError: they are not; the message says what to do.
    """
    task = find(name)
    if missing := task.missing():
        raise ValueError(f"the task {name!r} cannot run: {missing}")
    return task


def source(name: str) -> str:
    """A digest of the file in which a task of the user's own lies, so that a changed one is run again; else empty."""
    place, colon, _ = name.rpartition(":")
    file = _module(place).__file__ if colon else None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()[:10] if file else ""


@cache
def _module(place: str) -> ModuleType:
    """A module by name or by file. What lies beside the file, or in the current folder, can be imported from it."""
    path = Path(place)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise ValueError(f"there is no file {place!r}; the path is relative to {os.getcwd()}")
    folder = str(path.parent.resolve()) if is_file else os.getcwd()
    if folder not in sys.path:
        sys.path.insert(0, folder)
    name = path.stem if is_file else place
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise ValueError(
            f"there is no module {error.name!r}; for a file give its path, as in ./my_task.py:TASK"
        ) from None
    if is_file and not (module.__file__ and path.samefile(module.__file__)):
        raise ValueError(f"{place!r} has the name of another module, {module.__file__}; give the file another name")
    return module
