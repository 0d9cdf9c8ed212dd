"""Processes forked from a server with torch and the command imported, as an import in each would take long."""

from __future__ import annotations

import faulthandler
import io
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import time
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

LIMIT = 270  # seconds, below the limit of a test
PRELOADED = ["torch.distributed.fsdp", "torch.distributed.tensor.parallel", "torch.distributed.checkpoint"]
PRELOADED += ["hatam.bench.cli", "hypothesis", "pytest", "torch._dynamo"]  # an optimizer imports the last one


def become(script: str, arguments: list[str], environment: dict[str, str], log: str, cwd: str) -> None:
    """What a process of ours does: the script as ``__main__``; a name with no suffix is that of a module."""
    os.setsid()
    os.chdir(cwd)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which what started the tests may have ignored
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (io.TextIOWrapper(io.FileIO(fd, "w"), write_through=True) for fd in (1, 2))
    faulthandler.enable()
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    sys.argv = [script, *arguments]
    if script.endswith(".py"):
        sys.path.insert(0, str(Path(script).parent))
        runpy.run_path(script, run_name="__main__")
    else:
        runpy.run_module(script, run_name="__main__", alter_sys=True)


class Started:
    """A process that runs a script, in a session of its own."""

    def __init__(self, script: Path | str, *arguments: Any, folder: Path, cwd: Path = Path(), **variables: str) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        self.log = folder / f"process-{time.monotonic_ns()}.log"
        self.process = context.Process(
            target=become,
            args=(str(script), [*map(str, arguments)], variables, str(self.log), str(cwd.resolve())),
        )
        self.process.start()

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    @property
    def output(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""

    def wait(self, timeout: float = LIMIT) -> int | None:
        """Its exit status, negative for a signal, None where it had to be killed."""
        self.process.join(timeout)
        ended = self.process.exitcode
        if ended is None:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)  # what it started, too
        self.process.kill()
        self.process.join()
        return ended


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def run(processes: int, script: Path, *arguments: Any, folder: Path, **variables: str) -> tuple[list[int | None], str]:
    """Run a job to its end, or until one of its processes fails.

    Returns:
        the exit status of each process, None where it was killed, and what they wrote. None of them is left running.
    """
    variables |= {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    job = [
        Started(script, *arguments, folder=folder, RANK=str(rank), LOCAL_RANK=str(rank), **variables)
        for rank in range(processes)
    ]
    end = time.monotonic() + LIMIT
    running = [one.process for one in job]
    while running and all(one.process.exitcode in (None, 0) for one in job) and time.monotonic() < end:
        wait([process.sentinel for process in running], timeout=end - time.monotonic())
        running = [process for process in running if process.exitcode is None]
    return [one.wait(0) for one in job], "\n".join(one.output for one in job)
