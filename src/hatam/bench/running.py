"""Many runs on the cores of one machine. What has a record is not run again; a record is written when its run ends."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .records import Record, Run, Store
from .tasks import find
from .training import Progress, train

Report = Callable[[Run, int], None]  # told of a run how many steps it made since it was last told
Work = Callable[[Run, Progress], Record]  # does a run and returns its record
Failed = list[tuple[Run, str]]

_queue: Any = None  # in a worker: where progress goes


def missing(runs: Sequence[Run], store: Store) -> list[Run]:
    """The runs that have no record yet."""
    there = set(store.read()["key"])
    return [run for run in runs if run.key not in there]


def refuse_twice(runs: Sequence[Run]) -> None:
    """Contenders with the same options have the same records, which would count twice."""
    found: dict[str, str] = {}
    for run in runs:
        if run.key in found:
            raise ValueError(
                f"contenders {found[run.key]!r} and {run.label!r} have the same options: leave one of them out"
            )
        found[run.key] = run.label


def on_its_task(run: Run, progress: Progress) -> Record:
    """Train a run on the task that it names."""
    return train(find(run.task), run, progress)


def run_all(runs: Sequence[Run], store: Store, jobs: int, report: Report, *, work: Work = on_its_task) -> Failed:
    """Do runs in ``jobs`` processes of one thread each, or with one job in this process.

    Args:
        runs: what to do.
        store: where each record goes as its run ends.
        jobs: number of processes.
        report: told now and then how many steps a run made since it was last told.
        work: does one of them; must be picklable for more than one job.

    Returns:
        the runs that raised, with what they raised and where; the others are not held up by them.

    Raises:
        RuntimeError: a worker died, for instance for want of memory. Finished runs are kept.
        KeyboardInterrupt: as usual, after the workers were ended. Finished runs are kept.
    """
    if jobs == 1:
        return _stored(((run, _attempt(run, work, partial(report, run))) for run in runs), store)
    others = {*multiprocessing.active_children()}
    context = multiprocessing.get_context("spawn")
    progress = context.Queue()
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker, initargs=(progress,))
    try:
        pending = {pool.submit(_work, index, run, work): run for index, run in enumerate(runs)}
        failed = _stored(_ended(pending, runs, progress, report), store)
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


def _stored(ended: Any, store: Store) -> Failed:
    """Write each record as it comes; return what failed."""
    failed: Failed = []
    for run, outcome in ended:
        if isinstance(outcome, str):
            failed.append((run, outcome))
        else:
            store.add([outcome])
    return failed


def _ended(
    pending: dict[Future[Record | str], Run], runs: Sequence[Run], progress: Any, report: Report
) -> Iterator[tuple[Run, Record | str]]:
    """Each run as it ends, with its record or its error; progress is passed on meanwhile."""
    while pending:
        try:
            index, steps = progress.get(timeout=0.2)
            report(runs[index], steps)
        except queue.Empty:
            pass
        for future in [future for future in pending if future.done()]:
            yield pending.pop(future), future.result()


def _attempt(run: Run, work: Work, progress: Progress) -> Record | str:
    """Do a run: its record, or what it raised and where."""
    try:
        return work(run, progress)
    except Exception as error:
        return described(error)


def described(error: Exception) -> str:
    """What was raised and where, in words."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    where = " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
    return f"{type(error).__name__}: {error} (at {where})"


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes on one thread, as in a process of several."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _start_worker(progress: Any) -> None:
    """One thread a worker; Ctrl-C is the parent's to handle, and a worker does not outlive its parent."""
    global _queue
    _queue = progress
    start_quietly()


def start_quietly() -> None:
    """Prepare this process as a worker of its parent."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)


def end_with_parent() -> None:
    """End this process when its parent has ended, by a signal too."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(index: int, run: Run, work: Work) -> Record | str:
    return _attempt(run, work, lambda steps: _queue.put((index, steps)))
