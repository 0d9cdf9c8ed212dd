"""The storage on a real PostgreSQL server: a killed worker and a restarted server lose and repeat nothing."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from study_tiny import make_plan
from test_study import SCRIPT, TINY

from hatam.bench.records import Store
from hatam.bench.study.leader import Leader
from hatam.bench.study.storage import Storage, Waiting

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
pytestmark = pytest.mark.skipif(not BINARIES, reason="no PostgreSQL server here: apt-get install postgresql")
WAITING = Waiting(heartbeat=1, grace=4, patience=60.0, poll=0.2)


class Server:
    """A PostgreSQL server of its own, in a folder of its own; it refuses to run as root, so it runs as nobody."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._run("initdb", "-U", "hatam", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale", "C")

    @property
    def url(self) -> str:
        return f"postgresql://hatam@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        options = f"-p {self.port} -h 127.0.0.1 -k {self.folder} -c fsync=off"
        self._run("pg_ctl", "start", "-w", "-l", str(self.folder / "log"), "-o", options)

    def stop(self) -> None:
        self._run("pg_ctl", "stop", "-w", "-m", "immediate")

    def _run(self, program: str, *arguments: str) -> None:
        user = {"user": "nobody", "group": "nogroup", "extra_groups": ()} if os.getuid() == 0 else {}
        command = [str(BINARIES[-1].with_name(program)), "-D", str(self.folder / "data"), *arguments]
        log = self.folder / "commands"
        with log.open("a") as out:
            done = subprocess.run(command, stdout=out, stderr=out, cwd=self.folder, check=False, timeout=120, **user)
        assert done.returncode == 0, log.read_text()


@pytest.fixture
def server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="hatam-postgres-"))  # not below pytest's, which nobody may not enter
    folder.chmod(0o777)
    try:
        server = Server(folder)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def start_workers(url: str, folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(SCRIPT), "study", "work", "--plan", "slow", "--storage", url]
    options = ["--jobs", "2", "--heartbeat", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("wb") as log:
        return subprocess.Popen([*command, *options], stdout=log, stderr=log, env=environment, cwd=folder)


def children(pid: int) -> list[int]:
    """The workers that a process started, without multiprocessing's own helper."""
    found = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [child for child in found if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]


def lead_until(study: Leader, enough: int) -> bool:
    """Until so many records have come home, or the end."""
    limit = time.monotonic() + 270
    while not study.step():
        if len(study.store.read()) >= enough:
            return False
        assert time.monotonic() < limit, "the study does not come to an end"
        time.sleep(WAITING.poll)
    return True


def test_four_workers_one_killed_and_the_server_restarted(server: Server, tmp_path: Path) -> None:
    machines = [tmp_path / "one", tmp_path / "two"]
    for machine in machines:
        machine.mkdir()
    plan, _ = make_plan("slow", tasks=("slow",), contenders=("adamw", "sam")).resolved(TINY)
    study = Leader(plan, Store(tmp_path / "slow.parquet"), Storage(server.url, "slow", WAITING), TINY)
    study.step()
    started = [start_workers(server.url, machine) for machine in machines]
    try:
        assert not lead_until(study, 2)
        victims = children(started[0].pid)
        assert len(victims) == 2
        os.kill(victims[0], signal.SIGKILL)
        server.stop()
        time.sleep(1)
        server.start()
        assert lead_until(study, 10**6)
        for process, machine in zip(started, machines, strict=True):
            assert process.wait(timeout=100) == 0, (machine / "log").read_text()
    finally:
        for process in started:
            process.terminate()
            process.wait(timeout=100)
        study.storage.close()
    assert not study.failures
    records = study.store.read()
    counts = Counter(zip(records["contender"], records["stage"], records["comparison"], strict=True))
    assert counts == {
        ("adamw", "search", ""): 8,
        ("adamw", "select", ""): 8,
        ("sam", "search", ""): 3,
        ("sam", "select", ""): 4,
        **{(name, "final", comparison): 3 for name in ("adamw", "sam") for comparison in ("steps", "gradients")},
    }
    assert not records.duplicated(["key", "comparison", "stage"]).any()
