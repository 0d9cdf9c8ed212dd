"""Trainings that die, and disks that are full."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import jobs
import pytest
import torch
from kill_here import build, save

HERE = Path(__file__).resolve().parent


@pytest.mark.compatible("kill -9", "40 times in mid-training, in a step, in evaluation and while saving: none is lost")
def test_a_training_killed_at_random_moments(tmp_path: Path) -> None:
    """It ends where the training that nobody killed ends, bit for bit."""
    started = jobs.Started(HERE / "kill_here.py", tmp_path, 40, folder=tmp_path)
    assert started.wait() == 0, started.output
    found = json.loads(started.output.splitlines()[-1])
    assert found["lost"] == 0
    assert sum(found["killed"].values()) >= 40
    assert all(found["killed"][phase] for phase in ("step", "eval", "save"))
    whole, killed = (torch.load(tmp_path / name / "end.pt", weights_only=True) for name in ("whole", "killed"))
    assert all(torch.equal(x, killed[key]) for key, x in whole.items())


@pytest.mark.compatible("a full disk", "the checkpoint before stays, and the training goes on")
def test_a_full_disk_while_saving(tmp_path: Path) -> None:
    model, optimizer, _ = build()
    x = torch.randn(16, 10)

    def step() -> None:
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    step()
    path = tmp_path / "last.pt"
    save(path, model=model.state_dict(), optimizer=optimizer.state_dict())
    before = path.read_bytes()
    step()
    limits, heeded = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises((OSError, RuntimeError)):
            save(path, model=model.state_dict(), optimizer=optimizer.state_dict())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, heeded)
    assert path.read_bytes() == before
    assert torch.load(path, weights_only=True)["optimizer"]["state"][0]["step"] == 1
    step()
    save(path, model=model.state_dict(), optimizer=optimizer.state_dict())
    assert torch.load(path, weights_only=True)["optimizer"]["state"][0]["step"] == 3
