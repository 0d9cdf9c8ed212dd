"""Many runs on the cores of one machine. What has a record is not run again; a record is written when its run ends."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from . import records
from .execution import Report, Work, do
from .records import Run

_queue: Any = None  # in a worker: where progress goes


def missing(runs: Sequence[Run], root: Path) -> list[Run]:
    """The runs that have no record yet. A damaged record is an error, not a reason to overwrite it."""
    return [run for run in runs if not (run.path(root).exists() and records.read(run.path(root)))]


def refuse_twice(runs: Sequence[Run], root: Path) -> None:
    """Contenders with the same options have the same records, which would count twice."""
    found: dict[Path, str] = {}
    for run in runs:
        path = run.path(root)
        if path in found:
            raise ValueError(
                f"contenders {found[path]!r} and {run.label!r} have the same options: leave one of them out"
            )
        found[path] = run.label


def run_all(
    runs: Sequence[Run], root: Path, jobs: int, report: Report, *, work: Work | None = None
) -> list[tuple[Run, str]]:
    """Do runs in ``jobs`` processes of one thread each, or with one job in this one.

    Args:
        runs: what to do.
        root: folder of the records.
        jobs: number of processes.
        report: told now and then how many steps a run made since it was last told.
        work: does one of them, must be picklable; None trains on its task.

    Returns:
        the runs that raised, with their errors; the others are not held up by them.

    Raises:
        RuntimeError: a worker died, for instance for want of memory. Finished runs are kept.
        KeyboardInterrupt: as usual, after the workers were ended. Finished runs are kept.
    """
    if jobs == 1:
        with one_thread():
            return do(runs, root, report, work=work)
    others = {*multiprocessing.active_children()}
    context = multiprocessing.get_context("spawn")
    progress = context.Queue()
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker, initargs=(progress,))
    try:
        pending = {pool.submit(_work, index, run, root, work) for index, run in enumerate(runs)}
        failed = _collect(pending, runs, progress, report)
        pool.shutdown()
        return failed
    except BaseException as error:
        for worker in {*multiprocessing.active_children()} - others:
            worker.terminate()
        pool.shutdown(wait=False, cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise RuntimeError(
                "a worker process died; finished runs are kept, and the same command goes on where it stopped. "
                "Where memory is short, use fewer jobs; a script needs if __name__ == '__main__': around what it does"
            ) from error
        raise
    finally:
        progress.cancel_join_thread()
        progress.close()


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes on one thread, as in a process of several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _collect(
    pending: set[Future[tuple[int, str | None]]], runs: Sequence[Run], progress: Any, report: Report
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
            pending.remove(future)
            index, error = future.result()
            failed += [] if error is None else [(runs[index], error)]
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


def _work(index: int, run: Run, root: Path, work: Work | None) -> tuple[int, str | None]:
    """Do a run and write its record; returns its number and what went wrong."""
    failed = do([run], root, lambda run, steps: _queue.put((index, steps)), work=work)
    return index, failed[0][1] if failed else None
