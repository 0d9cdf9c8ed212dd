"""How a contender takes one training step. Most only need an optimizer; SAM and its kin own the whole step, and where
the weights of an evaluation are not those of the training, a trainer says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from hatam import HATAM

from . import schedules

Loss = Callable[[Tensor, Tensor], Tensor]


class Trainer:
    """One gradient of the batch's mean loss, one optimizer step.

    Args:
        model: the model to train, in place.
        loss: one loss per sample.
        optimizer: its learning rate is set from outside, in ``optimizer.param_groups``.

    Attributes:
        schedule: the factor on lr, ``schedule(step, steps, warmup)`` with the step counted from 0;
            the contender sets it.
    """

    schedule: schedules.Schedule

    def __init__(self, model: nn.Module, loss: Loss, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.samples_differentiated = 0

    def arrive(self, step: int, steps: int, warmup: float, lr: float) -> None:
        """To be told before each step where in the run it is, counted from 0: sets lr, of which this is the peak."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr * self.schedule(step, steps, warmup)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Train on one batch; returns the loss at the weights at which the gradient was taken."""
        loss = self.gradient(x, y)
        self.optimizer.step()
        return loss

    def gradient(self, x: Tensor, y: Tensor) -> Tensor:
        """Leave the gradient of the mean loss of these samples in ``.grad`` and return that loss.

        The samples are counted: a contender's cost is measured, not declared.
        """
        self.optimizer.zero_grad()
        loss = self.loss(self.model(x), y).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.samples_differentiated += len(x)
        return loss.detach()

    def evaluation(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights at which the contender is meant to be evaluated."""
        return nullcontext()


class HATAMTrainer(Trainer):
    """Evaluates HATAM at the straightened point."""

    optimizer: HATAM

    def evaluation(self) -> AbstractContextManager[None]:
        return self.optimizer.straightened()


class AdEMAMixTrainer(Trainer):
    """AdEMAMix (arXiv 2409.03137), whose α and β3 reach their values at the end of the run, as in its paper.

    The package's class does that when told the number of steps. Its weight decay is in the gradient by default, where
    the paper's is decoupled, and its β3 comes from log β1.
    """

    def __init__(self, model: nn.Module, loss: Loss, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(model, loss, optimizer)
        for group in optimizer.param_groups:
            beta1, _, beta3 = group["betas"]
            if not 0 < beta1 <= beta3 < 1:
                raise ValueError(
                    f"beta1={beta1!r} and beta3={beta3!r} are out of range: β3 grows from beta1 to beta3, so that they "
                    "must be 0 < beta1 <= beta3 < 1; the paper's are 0.9 and 0.9999"
                )

    def arrive(self, step: int, steps: int, warmup: float, lr: float) -> None:
        super().arrive(step, steps, warmup, lr)
        for group in self.optimizer.param_groups:
            group["t_alpha_beta3"] = steps


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
