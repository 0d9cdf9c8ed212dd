"""Runs in this process, one by one. What a run raises holds no other up."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from . import records
from .records import Run
from .tasks import Task, find
from .training import Progress, train

Report = Callable[[Run, int], None]  # told of a run how many steps it made since it was last told
Work = Callable[[Run, Progress], dict[str, Any]]  # does a run and returns its record


class RunError(Exception):
    """A run raised: what, and where, in words."""


def execute(
    runs: Iterable[Run], progress: Report, *, task: Task | None = None, work: Work | None = None
) -> Iterator[tuple[Run, dict[str, Any] | RunError]]:
    """Do runs; each comes as it ends, with its record or what it raised.

    Args:
        runs: of any tasks and contenders.
        progress: told now and then how many steps a run made since it was last told.
        task: the task of all of them; None finds it by its name.
        work: does one of them; None trains on its task.
    """
    for run in runs:
        told = partial(progress, run)
        try:
            yield run, work(run, told) if work else train(task or find(run.task), run, told)
        except Exception as error:
            yield run, described(error)


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
