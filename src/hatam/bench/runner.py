"""Many runs on the cores of one machine. What has a record is not run again; a record is written when its run ends."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import queue
import signal
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import torch

from . import batched, records
from .batched import Report
from .records import Run
from .tasks import all_tasks
from .training import train

# By docs/speed.md fewer runs gain little, and more no more; an MLP of 100,000 parameters gained nothing.
FEWEST, MOST, PARAMETERS = 8, 32, 50_000

_queue: Any = None  # in a worker: where progress goes


def missing(runs: Sequence[Run], root: Path) -> list[Run]:
    """The runs that have no record yet. A damaged record is an error, not a reason to overwrite it."""
    return [run for run in runs if not (run.path(root).exists() and records.read(run.path(root)))]


def groups(runs: Iterable[Run], jobs: int = 1) -> list[list[Run]]:
    """Divide runs into those to be done together, for ``jobs`` processes; where that cannot be or pays not, one by one.

    Args:
        runs: of any tasks and contenders.
        jobs: where there are enough runs, that many processes get a group each.
    """
    alike: dict[tuple[Any, ...], list[Run]] = defaultdict(list)
    for run in runs:
        alike[tuple(getattr(run, key) for key in batched.COMMON)].append(run)
    divided: list[list[Run]] = []
    for some in alike.values():
        parts = len(some)
        if len(some) >= FEWEST and _pays(some[0]):
            parts = max(min(jobs, len(some) // FEWEST), math.ceil(len(some) / MOST))
        divided += [some[i::parts] for i in range(parts)]
    return divided


def _pays(run: Run) -> bool:
    task = all_tasks()[run.task]
    parameters = sum(p.numel() for p in task.model().parameters())
    return parameters <= PARAMETERS and batched.refusal(task, run.contender) is None


def execute(runs: Iterable[Run], progress: Report) -> Iterator[tuple[Run, dict[str, Any] | Exception]]:
    """Do runs in this process, together where that pays; each comes as it ends, with its record or what it raised.

    Where a group fails, for instance because the options of one run make no sense, its rest is done one by one.
    """
    for group in groups(runs):
        todo = {id(run): run for run in group}
        task = all_tasks()[group[0].task]
        if len(group) > 1:
            try:
                for run, record in batched.as_they_end(task, group, progress):
                    del todo[id(run)]
                    yield run, record
            except Exception as error:
                logging.getLogger(__name__).info("%d runs are done one by one: %s", len(todo), error)
        for run in todo.values():
            try:
                yield run, train(task, run, partial(progress, run))
            except Exception as error:
                yield run, error


def run_all(
    runs: Sequence[Run], root: Path, jobs: int, report: Report, *, batch: bool = False
) -> list[tuple[Run, str]]:
    """Do runs in ``jobs`` processes of one thread each.

    Args:
        runs: what to run.
        root: folder of the records.
        jobs: number of processes.
        report: told now and then how many steps a run made since it was last told.
        batch: do runs of small models together where that pays; their records have no step times.

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
        places = {id(run): index for index, run in enumerate(runs)}
        pending = {
            pool.submit(_work, [(places[id(run)], run) for run in group], root)
            for group in (groups(runs, jobs) if batch else [[run] for run in runs])
        }
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
    pending: set[Future[dict[int, str]]], runs: Sequence[Run], progress: Any, report: Report
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
            failed += [(runs[index], error) for index, error in future.result().items()]
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


def _work(group: Sequence[tuple[int, Run]], root: Path) -> dict[int, str]:
    """Do runs and write their records; returns what went wrong, by the number of the run."""
    places = {id(run): index for index, run in group}
    failed: dict[int, str] = {}
    for run, ended in execute([run for _, run in group], lambda run, steps: _queue.put((places[id(run)], steps))):
        try:
            if isinstance(ended, Exception):
                raise ended
            records.write(run.path(root), ended)
        except Exception as error:
            failed[places[id(run)]] = f"{type(error).__name__}: {error}"
    return failed
