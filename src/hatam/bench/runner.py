"""Many runs on the cores of one machine. What has a record is not run again; a record is written when its run ends."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from . import records
from .records import Run
from .tasks import find
from .training import Progress, train

Work = Callable[[Run, Progress], dict[str, Any]]  # does a run and returns its record
Report = Callable[[Run, int], None]  # told the steps that a run made since the last report

_queue: Any = None  # in a worker: where progress goes


def missing(runs: Sequence[Run], root: Path) -> list[Run]:
    """The runs that have no record yet. A damaged record is an error, not a reason to overwrite it."""
    return [run for run in runs if not (run.path(root).exists() and records.read(run.path(root)))]


class RunError(Exception):
    """A run raised: what, and where, in words."""


def run_task(run: Run, progress: Progress) -> dict[str, Any]:
    """The work of a run on a :class:`hatam.bench.tasks.Task`."""
    return train(find(run.task), run, progress)


def run_all(runs: Sequence[Run], root: Path, jobs: int, report: Report, work: Work = run_task) -> list[tuple[Run, str]]:
    """Do runs in ``jobs`` processes of one thread each.

    Args:
        runs: what to do.
        root: folder of the records.
        jobs: number of processes.
        report: told of the progress.
        work: does one of them; it must be picklable.

    Returns:
        the runs that raised, with their errors; the others are not held up by them.

    Raises:
        RuntimeError: a worker died, for instance for want of memory. Finished runs are kept.
        KeyboardInterrupt: as usual, after the workers were ended. Finished runs are kept.
    """
    context = multiprocessing.get_context("spawn")
    progress = context.Queue()
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker, initargs=(progress,))
    try:
        pending = {pool.submit(_work, work, index, run, root): run for index, run in enumerate(runs)}
        failed = _collect(pending, runs, progress, report)
        pool.shutdown()
        return failed
    except BaseException as error:
        for worker in multiprocessing.active_children():
            worker.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise RuntimeError(
                "a worker process died; finished runs are kept, and the same command goes on where it stopped. "
                "Where memory is short, use fewer --jobs"
            ) from error
        raise
    finally:
        progress.cancel_join_thread()
        progress.close()


def _collect(
    pending: dict[Future[None], Run], runs: Sequence[Run], progress: Any, report: Report
) -> list[tuple[Run, str]]:
    """Pass progress on until every run has ended; return those that raised."""
    failed: list[tuple[Run, str]] = []
    while pending:
        try:
            index, steps = progress.get(timeout=0.2)
            report(runs[index], steps)
        except queue.Empty:
            pass
        for future in [future for future in pending if future.done()]:
            run = pending.pop(future)
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                raise error
            if error is not None:
                failed.append((run, str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"))
    return failed


def _start_worker(progress: Any) -> None:
    """One thread a worker; Ctrl-C is the parent's to handle, and a worker does not outlive its parent."""
    global _queue
    _queue = progress
    threading.Thread(target=_end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(work: Work, index: int, run: Run, root: Path) -> None:
    do(work, run, root, lambda steps: _queue.put((index, steps)))


def do(work: Work, run: Run, root: Path, progress: Progress) -> None:
    """Do one run and write its record.

    Raises:
        RunError: it raised; the message says what and where.
    """
    try:
        record = work(run, progress)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)[-3:]
        where = " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
        raise RunError(f"{type(error).__name__}: {error} (at {where})") from error
    records.write(run.path(root), record)
