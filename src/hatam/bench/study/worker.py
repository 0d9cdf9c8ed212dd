"""A worker: takes jobs, does their runs, and has no state of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean

from .. import records
from ..execution import RunError, execute
from ..records import Run
from ..tasks import Task
from .queue import Queue, Taken
from .stages import Record, score

log = logging.getLogger(__name__)


def work(queue: Queue, root: Path, tasks: Mapping[str, Task], *, stay: bool = True) -> int:
    """Take jobs until the study is finished.

    Args:
        queue: where from.
        root: folder of the records.
        tasks: by name.
        stay: wait for further jobs until the study is finished; else leave when none waits.

    Returns:
        the number of jobs done.

    Raises:
        OSError, ValueError: a record cannot be written or is damaged. The job goes back into the queue.
        RuntimeError: the queue cannot be used.
    """
    done = 0
    while True:
        taken = _next(queue)
        if taken:
            do(queue, taken, root, tasks)
            done += len(taken)
        elif not stay or queue.noted("finished"):
            return done
        else:
            time.sleep(queue.waiting.poll)


def _next(queue: Queue) -> list[Taken]:
    """Jobs of the first open stage that has any waiting."""
    stages = queue.noted("open") or []
    for stage in stages:
        taken = queue.take(stage, 1)
        if taken:
            return taken
    for stage in stages:
        queue.retry_stale(stage)
    return []


def do(queue: Queue, taken: list[Taken], root: Path, tasks: Mapping[str, Task]) -> None:
    """Do the runs that have no record yet, and tell the queue.

    Every exception but that of a run gives the jobs back: they were not at fault.
    """
    try:
        with _alive(queue, taken):
            errors = _run(queue, taken, root, tasks[taken[0].runs[0].task])
            for job in taken:
                error = next((errors[run.path(root)] for run in job.runs if run.path(root) in errors), None)
                _finish(queue, job, root, tasks[job.runs[0].task], error)
    except RuntimeError:  # the queue is out of reach: it will miss the heartbeat
        raise
    except BaseException:
        for job in taken:
            queue.release(job)
        raise


def _run(queue: Queue, taken: list[Taken], root: Path, task: Task) -> dict[Path, str]:
    """Make the records that are missing; returns what the runs that failed have raised, by their records' paths."""
    owner = {run.path(root): (job, run) for job in taken for run in job.runs}
    there = {run_of(record).path(root): record for job in taken for record in job.records}
    for path, (job, run) in owner.items():
        if path in there:
            restore(root, there[path])
        elif (found := stored(root, run)) is not None:
            queue.keep(job, found)
    errors: dict[Path, str] = {}
    missing = [run for path, (_, run) in owner.items() if not path.exists()]
    for run, ended in execute(missing, lambda run, steps: None, task=task):
        path = run.path(root)
        if isinstance(ended, RunError):
            log.warning("%s with %s failed: %s", task.name, run.contender, ended)
            errors[path] = str(ended)
        else:
            records.write(path, ended)
            queue.keep(owner[path][0], ended)
    return errors


def _finish(queue: Queue, job: Taken, root: Path, task: Task, error: str | None) -> None:
    found = [stored(root, run) for run in job.runs]
    if None in found:
        queue.fail(job, error or "a run gave no record")
    else:
        queue.complete(job, fmean(score(record, task) for record in found if record is not None))


def stored(root: Path, run: Run) -> Record | None:
    """The record of a run, None where there is none.

    Raises:
        ValueError: it is damaged.
    """
    path = run.path(root)
    return records.read(path) if path.exists() else None


def restore(root: Path, record: Record) -> None:
    """Write a record that came from the queue, unless it is there."""
    path = run_of(record).path(root)
    if not path.exists():
        records.write(path, record)


def run_of(record: Record) -> Run:
    """What a record is of."""
    return Run(**record["run"])


@contextmanager
def _alive(queue: Queue, taken: list[Taken]) -> Iterator[None]:
    """Inside, the queue hears regularly that this worker lives, whatever it is at."""
    end = threading.Event()

    def beat() -> None:
        while not end.wait(queue.waiting.heartbeat):
            for job in taken:
                try:
                    queue.beat(job)
                except RuntimeError as error:  # the main thread will meet it too, and end in order
                    log.warning("%s", error)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join(timeout=1)
