"""Trainers that are evaluated at an average of the weights that they went through."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from schedulefree import AdamWScheduleFreePaper
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from . import schedules
from .trainers import Loss, Step, Trainer, restoring


class EMATrainer(Trainer):
    """Evaluates at the exponential moving average of the weights, x ← decay x + (1 − decay) w after every step.

    It begins at the weights after the first step. Buffers are averaged too, so that the statistics of a batch norm are
    those of the averaged weights, nearly.

    Args:
        decay: in [0, 1); 0 evaluates at the weights themselves. It forgets in about 1 / (1 − decay) steps.
    """

    def __init__(self, model: nn.Module, loss: Loss, optimizer: torch.optim.Optimizer, decay: float) -> None:
        super().__init__(model, loss, optimizer)
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay!r} is out of range: it must be in [0, 1); 0 does not average")
        average = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]
        self.average = AveragedModel(model, multi_avg_fn=average, use_buffers=True)

    def steps(self, x: Tensor, y: Tensor) -> Step:
        loss = yield from super().steps(x, y)
        self.average.update_parameters(self.model)
        return loss

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        tensors = _tensors(self.model)
        with restoring(tensors):
            with torch.no_grad():
                for tensor, average in zip(tensors, _tensors(self.average.module), strict=True):
                    tensor.copy_(average)
            yield


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


class ScheduleFreeTrainer(Trainer):
    """Schedule-Free AdamW (arXiv 2405.15682): trains at y, evaluates at the average x; lr stays up after its warm-up.

    The optimizer is the one that its authors call the paper's; their default one differs in its first steps. The
    statistics of a batch norm are those of y.
    """

    optimizer: AdamWScheduleFreePaper
    schedule = staticmethod(schedules.constant)

    def __init__(self, model: nn.Module, loss: Loss, optimizer: AdamWScheduleFreePaper) -> None:
        super().__init__(model, loss, optimizer)
        for group in optimizer.param_groups:
            if not 0 < group["betas"][0] < 1:
                raise ValueError(
                    f"beta1={group['betas'][0]!r} is out of range: it must be in (0, 1), as x is extrapolated from y "
                    "with 1 / beta1; the paper's is 0.9"
                )
        optimizer.train()

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        with restoring(p for group in self.optimizer.param_groups for p in group["params"]):
            self.optimizer.eval()
            try:
                yield
            finally:
                self.optimizer.train()
