"""Workers as processes of this machine, one thread each."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import threading
from collections.abc import Sequence
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import FrameType

import torch

from ..runner import end_with_parent
from ..tasks import all_tasks
from .queue import Queue, Waiting
from .worker import work


class LocalWorkers:
    """Some workers; one that is killed is replaced, and one that ends with an error ends the study.

    Args:
        count: of processes.
        url, name, waiting: of the queue.
        root: folder of the records.
    """

    def __init__(self, count: int, url: str, name: str, root: Path, waiting: Waiting) -> None:
        self._arguments = (url, name, root, waiting)
        self._processes = [self._start() for _ in range(count)]

    def _start(self) -> SpawnProcess:
        process = multiprocessing.get_context("spawn").Process(target=worker_process, args=self._arguments)
        process.start()
        return process

    def watch(self) -> bool:
        """Replace workers that were killed; False when all have come to their end.

        Raises:
            RuntimeError: a worker ended with an error, which it has printed.
        """
        for index, process in enumerate(self._processes):
            if process.exitcode is None or process.exitcode == 0:
                continue
            if process.exitcode > 0:
                raise RuntimeError("a worker stopped, see above; finished runs are kept, the same command goes on")
            self._processes[index] = self._start()
        return any(process.exitcode is None for process in self._processes)

    def end(self) -> None:
        """Have all of them give back what they are at, and end."""
        ended: Sequence[SpawnProcess] = [process for process in self._processes if process.exitcode is None]
        for process in ended:
            process.terminate()
        for process in ended:
            process.join(10)
            if process.exitcode is None:
                process.kill()
                process.join()


def worker_process(url: str, name: str, root: Path, waiting: Waiting) -> None:
    """Work until the study is finished. Ctrl-C is the parent's to handle; a worker does not outlive its parent."""

    def give_back(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, give_back)
    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    try:
        work(Queue(url, name, waiting), root, all_tasks())
    except (OSError, ValueError, RuntimeError) as error:
        print(f"hatam worker: {error}", file=sys.stderr, flush=True)
        raise SystemExit(2) from None
