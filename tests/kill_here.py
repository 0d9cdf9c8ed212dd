"""A training that is killed at random moments and goes on from its last whole checkpoint. See test_killed.py.

Forked from a process that has imported torch, so that 40 trainings start in no time.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn

from hatam import HATAM, follow

STEPS = 60
PHASES = ("start", "step", "eval", "save")
phase = mmap.mmap(-1, 1)  # shared by the processes: what the training does now


def build() -> tuple[nn.Sequential, HATAM, torch.optim.lr_scheduler.LRScheduler]:
    """BatchNorm and dropout: what they keep and draw has to go on, too."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 3))
    optimizer = HATAM(model.named_parameters(), lr=0.02, gamma=0.5, travel=0.5)
    follow(model, optimizer)
    return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)


def save(path: Path, **parts: object) -> None:
    """Whole or not at all: another file takes the place of the last one when it is complete."""
    beside = path.with_suffix(".new")
    with beside.open("wb") as file:
        torch.save(parts, file)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def train(folder: Path) -> None:
    """To the end, from the last checkpoint; a checkpoint a step, each second one at the point to evaluate."""
    model, optimizer, schedule = build()
    path, first = folder / "last.pt", 0
    if path.exists():
        saved = torch.load(path, weights_only=True)
        first = saved["step"]
        model.train(saved["training"])
        optimizer.load_state_dict(saved["optimizer"])
        model.load_state_dict(saved["model"])
        schedule.load_state_dict(saved["schedule"])
        torch.set_rng_state(saved["rng"])
    log = os.open(folder / "steps", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for step in range(first, STEPS):
        phase[0] = PHASES.index("step")
        rng = torch.Generator().manual_seed(step)
        x = torch.randn(16, 10, generator=rng)
        model.train()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), x[:, :3].argmax(1)).backward()
        optimizer.step()
        schedule.step()
        phase[0] = PHASES.index("eval")
        model.train(step % 2 == 0)
        model(x)
        phase[0] = PHASES.index("save")
        states = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        save(path, step=step + 1, training=model.training, rng=torch.get_rng_state(), **states)
        os.write(log, f"{step + 1}\n".encode())
    model.eval()
    torch.save(model.state_dict(), folder / "end.pt")


def child(folder: Path) -> int:
    """Start the training in a process of its own."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            train(folder)
            status = 0
        finally:
            os._exit(status)
    return pid


def main() -> None:
    """Train once to the end, then kill the same training again and again, and say what was lost."""
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    for name in ("whole", "killed"):
        (folder / name).mkdir()
    warm = HATAM([nn.Parameter(torch.zeros(2))])  # imports what a first step imports
    warm.param_groups[0]["params"][0].grad = torch.zeros(2)
    warm.step()
    torch.optim.lr_scheduler.CosineAnnealingLR(warm, 2)
    begun = time.monotonic()
    assert os.waitpid(child(folder / "whole"), 0)[1] == 0
    duration = time.monotonic() - begun
    draw, killed, lost = random.Random(0), dict.fromkeys(PHASES, 0), 0
    where = folder / "killed"
    while sum(killed.values()) < kills or not all(killed.values()):
        phase[0] = PHASES.index("start")
        pid = child(where)
        while phase[0] == PHASES.index("start") and draw.random() < 0.998:  # and now and then before the first step
            time.sleep(0.001)
        time.sleep(draw.uniform(0, 4) * duration / STEPS)
        os.kill(pid, signal.SIGKILL)
        status = os.waitpid(pid, 0)[1]
        killed[PHASES[phase[0]]] += os.WIFSIGNALED(status)
        if not (where / "last.pt").exists():
            continue
        told = (where / "steps").read_text().split()
        step = torch.load(where / "last.pt", weights_only=True)["step"]
        lost += step < int(told[-1] if told else 0)
        if not os.WIFSIGNALED(status):  # it has come to its end: from the start again
            (where / "last.pt").unlink()
            (where / "steps").unlink()
    assert os.waitpid(child(where), 0)[1] == 0
    print(json.dumps({"killed": killed, "lost": lost}))


if __name__ == "__main__":
    main()
