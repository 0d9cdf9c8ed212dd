"""Many processes on this machine, with gloo over loopback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch

from hatam import sharded

HERE = Path(__file__).resolve().parent
EXAMPLE = HERE.parent / "examples/fsdp2_train.py"


def done(processes: int, script: Path, *arguments: Any, folder: Path) -> str:
    """What the processes of a job wrote, all of which must end well."""
    ended, said = jobs.run(processes, script, *arguments, folder=folder)
    assert ended == [0] * processes, said
    return said


def checked(processes: int, folder: Path, *cases: str) -> dict[str, Any]:
    """What the cases found, which check themselves."""
    done(processes, HERE / "distributed_cases.py", folder, *cases, folder=folder)
    found = {case: folder / f"{case}-{processes}.json" for case in cases}
    return {case: json.loads(path.read_text(encoding="utf-8")) for case, path in found.items()}


@pytest.mark.compatible("DDP, FSDP2, tensor parallel", "the numbers of unsharded training, on 2 processes")
def test_two_processes(tmp_path: Path) -> None:
    found = checked(2, tmp_path, "collectives", "parity", "modules", "ddp", "follow", "scaler", "merged", "telemetry")
    assert len(found["parity"]) == 36
    for name, error in {**found["parity"], **found["modules"]}.items():
        assert error < (2e-5 if "float32" in name else 1e-12), name
    for kind in ("uniform", "relative"):
        sent = {"collectives a step": 1.0, "bytes a tensor": sharded.payload(1, mean=kind == "relative")}
        assert found["collectives"][kind] == sent
    assert found["collectives"]["AdamW"]["collectives a step"] == 0


@pytest.mark.compatible("DDP, FSDP2, HSDP, tensor parallel", "the numbers of unsharded training, on 4 processes")
@pytest.mark.parametrize("cases", [["modules"], ["collectives", "parity", "ddp", "telemetry"]], ids="-".join)
def test_four_processes(cases: list[str], tmp_path: Path) -> None:
    found = checked(4, tmp_path, *cases)
    if "modules" in cases:
        assert {name.partition(",")[0] for name in found["modules"]} == {"FSDP2", "HSDP", "TP", "FSDP2 and TP"}
    if "collectives" in cases:
        assert found["collectives"]["three meshes"] == 3


def loss_of(said: str) -> float:
    found = re.search(r"loss: ([0-9.]+)", said)
    assert found is not None, said
    return float(found[1])


@pytest.mark.compatible("distributed checkpoints", "saved on 4 processes, resumed on 4, 2 and 1; from AdamW's")
def test_checkpoints_that_reshard(tmp_path: Path) -> None:
    """Bit for bit on as many processes, to rounding on others; async, and primed with zero gradients by torch."""
    common = ("--steps", 12, "--every", 6)
    straight = done(
        4, EXAMPLE, "--folder", tmp_path / "run", *common, "--weights", tmp_path / "straight.pt", folder=tmp_path
    )
    shutil.rmtree(tmp_path / "run/step-000012")
    for processes in (4, 2, 1):
        folder = tmp_path / f"run{processes}"
        shutil.copytree(tmp_path / "run", folder)
        weights = tmp_path / f"{processes}.pt"
        said = done(processes, EXAMPLE, "--folder", folder, *common, "--weights", weights, folder=tmp_path)
        assert "from step 6 to 12" in said
        assert loss_of(said) == pytest.approx(loss_of(straight), rel=1e-5)
    one, other = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("straight", "4"))
    assert all(torch.equal(one[key], other[key]) for key in one)

    folder = tmp_path / "adamw"
    done(1, EXAMPLE, "--folder", folder, "--steps", 6, "--every", 6, "--optimizer", "adamw", folder=tmp_path)
    said = done(2, EXAMPLE, "--folder", folder, *common, folder=tmp_path)
    assert "from step 6 to 12" in said
    assert loss_of(said) < 5.0  # 5.5 of a network that knows nothing


def test_a_process_that_dies(tmp_path: Path) -> None:
    """torchrun ends and says which; the training goes on from the last whole checkpoint."""
    command = (
        "--standalone",
        "--nproc-per-node=2",
        EXAMPLE,
        "--folder",
        tmp_path / "run",
        "--steps",
        4000,
        "--every",
        3,
    )
    started = jobs.Started("torch.distributed.run", *command, folder=tmp_path)
    begun = time.monotonic()
    try:
        while not list((tmp_path / "run").glob("step-*/.metadata")):
            assert started.process.exitcode is None, started.output
            assert time.monotonic() - begun < jobs.LIMIT
            time.sleep(0.05)
        children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
        os.kill(int(children[-1]), signal.SIGKILL)
    except BaseException:
        started.wait(0)
        raise
    ended, said = started.wait(), started.output
    assert ended
    assert "SIGKILL" in said
    assert re.search(r"rank\s*: \d", said), said
    last = max(int(path.parent.name.removeprefix("step-")) for path in (tmp_path / "run").glob("step-*/.metadata"))
    again = ("--folder", tmp_path / "run", "--steps", last + 3, "--every", 3)
    assert f"from step {last} to {last + 3}" in done(2, EXAMPLE, *again, folder=tmp_path)
