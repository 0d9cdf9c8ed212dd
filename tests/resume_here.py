"""A new process that goes on from checkpoints: python resume_here.py IN OUT. See test_checkpoints.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from conftest import state_bits

from hatam import HATAM

STEPS = 80


def network(dtype: torch.dtype, seed: int = 0) -> torch.nn.Sequential:
    """Whose first weight is large enough for 8-bit state."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 10)).to(dtype)


def train(model: torch.nn.Module, optimizer: HATAM, schedule: Any, first: int, last: int) -> None:
    """Steps of a training whose batches depend on their number alone."""
    dtype = next(model.parameters()).dtype
    for i in range(first, last):
        rng = torch.Generator().manual_seed(i)
        x, y = torch.randn(32, 64, generator=rng), torch.randint(10, (32,), generator=rng)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x.to(dtype)).float(), y).backward()
        optimizer.step()
        schedule.step()


def schedule_of(optimizer: HATAM) -> torch.optim.lr_scheduler.LRScheduler:
    """Up, and down to 0 at the last step."""
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=STEPS + 1, cycle_momentum=False)


def end(model: torch.nn.Module, optimizer: HATAM) -> list[bytes]:
    """Everything that training has changed, to the last bit."""
    weights = [p.detach().contiguous().view(torch.uint8).numpy().tobytes() for p in model.parameters()]
    group = optimizer.param_groups[0]
    return [*weights, *state_bits(optimizer), repr((group["lr_peak"], group["reach_started"])).encode()]


def main(source: Path, target: Path) -> None:
    torch.set_num_threads(1)
    HATAM([torch.zeros(1, requires_grad=True)], state_dtype="8bit")  # before such a state is loaded, as users are told
    ends = {}
    for name, saved in torch.load(source, weights_only=True).items():
        model = network(saved["model"]["0.weight"].dtype, seed=1)  # other weights
        optimizer = HATAM(model.parameters(), 0.5, fused=saved["optimizer"]["param_groups"][0]["fused"])
        schedule = schedule_of(optimizer)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        schedule.load_state_dict(saved["schedule"])
        train(model, optimizer, schedule, STEPS // 2, STEPS)
        ends[name] = end(model, optimizer)
    torch.save(ends, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
