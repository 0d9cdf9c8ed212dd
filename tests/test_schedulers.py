"""Every learning-rate schedule of torch, with the optimizer and through a checkpoint."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import every_variant, parameters
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import SWALR

from hatam import HATAM

SCHEDULES: dict[str, Callable[[HATAM], LRScheduler]] = {
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 4), lr_scheduler.ExponentialLR(o, 0.95)]
    ),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 4),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 20),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 7),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.005, 0.02, step_size_up=4),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [3, 12]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.95),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=25),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 20),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0),
    "SWALR": lambda o: SWALR(o, 0.005, anneal_epochs=5),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=5), lr_scheduler.CosineAnnealingLR(o, 15)], [5]
    ),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 5),
}


def test_all_of_torch_are_here() -> None:
    public = {name: x for name, x in vars(lr_scheduler).items() if name in lr_scheduler.__all__ and inspect.isclass(x)}
    assert {name for name in public if name != "LRScheduler"} <= SCHEDULES.keys()


@pytest.mark.compatible("learning-rate schedules", "all of torch's, also through a checkpoint")
@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES.keys())
@every_variant
def test_schedulers(options: dict[str, Any], make: Callable[[HATAM], LRScheduler]) -> None:
    """Training on a quadratic under each; saved and loaded half way with the optimizer, it goes on bit for bit."""

    def setup() -> tuple[torch.nn.Parameter, HATAM, LRScheduler]:
        (param,) = parameters([(20,)])
        optimizer = HATAM([param], 0.02, **options)
        return param, optimizer, make(optimizer)

    def train(param: torch.nn.Parameter, optimizer: HATAM, scheduler: LRScheduler, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (param**2).sum()
            loss.backward()
            optimizer.step()
            scheduler.step(*[1.0] * isinstance(scheduler, lr_scheduler.ReduceLROnPlateau))
            losses.append(loss.item())
        return losses

    param, optimizer, scheduler = setup()
    first = train(param, optimizer, scheduler, 10)
    other, resumed, resumed_scheduler = setup()
    other.data.copy_(param.data)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed_scheduler.load_state_dict(scheduler.state_dict())
    second = train(param, optimizer, scheduler, 10)
    assert train(other, resumed, resumed_scheduler, 10) == second
    assert torch.equal(param, other)
    assert second[-1] < first[0]
