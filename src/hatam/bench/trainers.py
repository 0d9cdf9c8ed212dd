"""How a contender takes one training step, and at which weights it is evaluated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from . import schedules

Loss = Callable[[Tensor, Tensor], Tensor]


class Trainer:
    """One call of ``optimizer.step`` per batch, with a closure that evaluates loss and gradient.

    Args:
        model: the model to train, in place.
        loss: one loss per sample.
        optimizer: its learning rate is set from outside, in ``optimizer.param_groups``.

    Attributes:
        schedule: the factor of lr, ``schedule(step, steps, warmup)`` with the step counted from 0.
        samples_differentiated: number of samples whose gradient was taken: the measured cost.
    """

    schedule: schedules.Schedule

    def __init__(self, model: nn.Module, loss: Loss, optimizer: Optimizer) -> None:
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.samples_differentiated = 0

    def arrive(self, step: int, steps: int, warmup: float, lr: float) -> None:
        """Set the learning rate of a step, counted from 0; ``lr`` is the peak."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * self.schedule(step, steps, warmup)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Train on one batch. Returns the loss at the weights of the first gradient."""
        losses: list[Tensor] = []

        def closure() -> Tensor:
            # A second pass at perturbed weights must not move BatchNorm's running statistics.
            with statistics_held(self.model) if losses else nullcontext():
                losses.append(self.gradient(x, y))
            return losses[-1]

        self.optimizer.step(closure)  # type: ignore[arg-type]
        return losses[0]

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Leave the gradient of the mean loss of these samples in ``.grad`` and return that loss."""
        self.optimizer.zero_grad()
        loss = self.loss(self.model(x), y).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.samples_differentiated += len(x)
        return loss.detach()

    def evaluation(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights at which the contender is meant to be evaluated."""
        return evaluating(self.optimizer)


def evaluating(optimizer: Optimizer) -> AbstractContextManager[None]:
    """Inside, the parameters are those at which the optimizer is meant to be evaluated; afterwards what they were.

    These are :meth:`hatam.HATAM.straightened` for HATAM, the average for Schedule-Free and GPA, the undisplaced weights
    for MSAM, and for most optimizers the parameters themselves. An optimizer of your own takes part by a method
    ``straightened()`` that returns a context manager, or by ``eval()`` and ``train()``.

    Example:
        >>> import torch
        >>> from hatam.bench import evaluating
        >>> w = torch.nn.Parameter(torch.ones(1))
        >>> with evaluating(torch.optim.AdamW([w])):
        ...     print(w.item())
        1.0
    """
    own: Any = getattr(optimizer, "straightened", None)
    if own is not None:
        return own()  # type: ignore[no-any-return]
    if hasattr(optimizer, "eval") and hasattr(optimizer, "train"):
        return _in_eval_mode(optimizer)
    return nullcontext()


@contextmanager
def _in_eval_mode(optimizer: Any) -> Iterator[None]:
    """``eval()`` and ``train()`` move the weights there and back; rounding may not return them exactly."""
    with restoring(p for group in optimizer.param_groups for p in group["params"]):
        optimizer.eval()
        try:
            yield
        finally:
            optimizer.train()


@contextmanager
def restoring(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Afterwards these tensors are bit for bit what they were."""
    saved = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in saved:
                tensor.copy_(value)


@contextmanager
def statistics_held(model: nn.Module) -> Iterator[None]:
    """Inside, training leaves BatchNorm's running statistics alone.

    Those at perturbed weights or on a part of the batch would differ from the statistics of the evaluated weights.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
