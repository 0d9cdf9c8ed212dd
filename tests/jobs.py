"""Jobs of several processes, forked from a server with torch imported, as an import in each would take long."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import runpy
import socket
import sys
import time
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

LIMIT = 270  # seconds, below the limit of a test
PRELOADED = ["torch.distributed.tensor.parallel", "torch.distributed.fsdp", "torch.distributed.checkpoint", "hatam"]


def run_rank(rank: int, environment: dict[str, str], script: str, arguments: list[str], log: str) -> None:
    """One process of a job: the script as ``__main__``, with what torchrun sets in the environment."""
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    faulthandler.enable()
    os.environ.update(environment, RANK=str(rank), LOCAL_RANK=str(rank))
    import torch

    torch.set_num_threads(1)
    sys.argv = [script, *arguments]
    sys.path.insert(0, str(Path(script).parent))
    runpy.run_path(script, run_name="__main__")
    sys.stdout.flush()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def run(processes: int, script: Path, *arguments: Any, folder: Path, **variables: str) -> tuple[list[int | None], str]:
    """Run a job to its end, or until one of its processes fails.

    Returns:
        the exit status of each process, negative for a signal, and what they wrote. None of them is left running.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    environment = {
        "WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    } | variables
    logs = [folder / f"rank-{time.monotonic_ns()}-{rank}.log" for rank in range(processes)]
    job = [
        context.Process(target=run_rank, args=(rank, environment, str(script), [*map(str, arguments)], str(log)))
        for rank, log in enumerate(logs)
    ]
    end = time.monotonic() + LIMIT
    try:
        for process in job:
            process.start()
        running = job
        while running and all(process.exitcode in (None, 0) for process in job) and time.monotonic() < end:
            wait([process.sentinel for process in running], timeout=end - time.monotonic())
            running = [process for process in job if process.exitcode is None]
        ended = [process.exitcode for process in job]
    finally:
        for process in job:
            process.kill()
            process.join()
    return ended, "\n".join(log.read_text(encoding="utf-8", errors="replace") for log in logs if log.exists())
