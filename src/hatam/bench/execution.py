"""Runs in this process: together where that pays, else one by one. What a run raises holds no other up."""

from __future__ import annotations

import logging
import math
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from . import batched, records
from .batched import Report
from .records import Run
from .tasks import Task, find
from .training import Progress, train

Work = Callable[[Run, Progress], dict[str, Any]]  # does a run and returns its record

# By docs/speed.md fewer runs gain little, and more no more; an MLP of 100,000 parameters gained nothing, and a
# convolution loses: vectorized, torch makes it a grouped one, which is slower than one after the other.
FEWEST, MOST, PARAMETERS = 8, 32, 50_000
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


refusal = cache(batched.refusal)


class RunError(Exception):
    """A run raised: what, and where, in words."""


def groups(runs: Iterable[Run], jobs: int = 1, task: Task | None = None) -> list[list[Run]]:
    """Divide runs into those to be done together, for ``jobs`` processes; where that cannot be or pays not, one by one.

    Args:
        runs: of any tasks and contenders.
        jobs: where there are enough runs, that many processes get a group each.
        task: the task of all of them; None finds it by its name.
    """
    alike: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        alike[tuple(getattr(run, key) for key in batched.COMMON)].append(run)
    divided: list[list[Run]] = []
    for some in alike.values():
        parts = len(some)
        if len(some) >= FEWEST and _pays(task or find(some[0].task), some[0].contender):
            parts = max(min(jobs, len(some) // FEWEST), math.ceil(len(some) / MOST))
        divided += [some[i::parts] for i in range(parts)]
    return divided


def _pays(task: Task, contender: str) -> bool:
    with torch.random.fork_rng(devices=[]):
        model = task.model()
    small = sum(p.numel() for p in model.parameters()) <= PARAMETERS
    convolves = any(isinstance(module, CONVOLUTIONS) for module in model.modules())
    return small and not convolves and refusal(task, contender) is None


def execute(
    runs: Iterable[Run], progress: Report, *, task: Task | None = None, work: Work | None = None
) -> Iterator[tuple[Run, dict[str, Any] | RunError]]:
    """Do runs; each comes as it ends, with its record or what it raised.

    Where a group fails, for instance because the options of one run make no sense, its rest is done one by one.

    Args:
        runs: of any tasks and contenders.
        progress: told now and then how many steps a run made since it was last told.
        task: the task of all of them; None finds it by its name.
        work: does one of them; None trains on its task.
    """
    for group in [[run] for run in runs] if work else groups(runs, task=task):
        todo = {id(run): run for run in group}
        if len(group) > 1:
            try:
                for run, record in batched.as_they_end(task or find(group[0].task), group, progress):
                    del todo[id(run)]
                    yield run, record
            except Exception as error:
                logging.getLogger(__name__).info("%d runs are done one by one: %s", len(todo), error)
        for run in todo.values():
            try:
                yield run, work(run, partial(progress, run)) if work else _train(run, partial(progress, run), task)
            except Exception as error:
                yield run, described(error)


def _train(run: Run, progress: Progress, task: Task | None) -> dict[str, Any]:
    return train(task or find(run.task), run, progress)


def described(error: Exception) -> RunError:
    """What was raised and where, as an error that can be sent to another process."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    where = " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
    return RunError(f"{type(error).__name__}: {error} (at {where})")


def do(runs: Iterable[Run], root: Path, progress: Report, *, work: Work | None = None) -> list[tuple[Run, str]]:
    """Do runs and write their records, each as it ends.

    Returns:
        the runs that failed, with what they raised and where.
    """
    failed: list[tuple[Run, str]] = []
    for run, ended in execute(runs, progress, work=work):
        try:
            if isinstance(ended, RunError):
                raise ended
            records.write(run.path(root), ended)
        except Exception as error:
            failed.append((run, str(error if isinstance(error, RunError) else described(error))))
    return failed
