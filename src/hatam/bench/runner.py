"""Many runs on the cores of one machine. What has a record is not run again; a record is written when its run ends."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import records
from .records import Run
from .tasks import Task, all_tasks
from .training import train

Report = Callable[[Run, int], None]  # told the steps that a run made since the last report

_queue: Any = None  # in a worker: where progress goes


def missing(runs: Sequence[Run], root: Path) -> list[Run]:
    """The runs that have no record yet. A damaged record is an error, not a reason to overwrite it."""
    return [run for run in runs if not (run.path(root).exists() and records.read(run.path(root)))]


def execute(task: Task, runs: Sequence[Run], progress: Report = lambda run, steps: None) -> Iterator[dict[str, Any]]:
    """Do runs of one task in this process, one after the other; their records as they come.

    Args:
        task: the task that all ``runs`` name.
        runs: what to run.
        progress: told now and then how many steps of a run were made since it was last told.
    """
    for run in runs:
        yield train(task, run, partial(progress, run))


def run_all(runs: Sequence[Run], root: Path, jobs: int, report: Report) -> list[tuple[Run, str]]:
    """Do runs in ``jobs`` processes of one thread each.

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
        pending = {pool.submit(_work, index, run, root): run for index, run in enumerate(runs)}
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
                failed.append((run, f"{type(error).__name__}: {error}"))
    return failed


def _start_worker(progress: Any) -> None:
    """One thread a worker; Ctrl-C is the parent's to handle, and a worker does not outlive its parent."""
    global _queue
    _queue = progress
    threading.Thread(target=end_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def end_with_parent() -> None:
    """End this process when its parent has ended; blocks until then."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(index: int, run: Run, root: Path) -> None:
    record = train(all_tasks()[run.task], run, lambda steps: _queue.put((index, steps)))
    records.write(run.path(root), record)
