"""How a contender takes one training step. Most only need an optimizer; SAM and its kin own the whole step, and where
the weights of an evaluation are not those of the training, a trainer says so."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from hatam import HATAM

from . import schedules
from .first_forms import FirstHATAM

Loss = Callable[[Tensor, Tensor], Tensor]
Request = TypeVar("Request")
Result = TypeVar("Result")


class Gradient(NamedTuple):
    """Asks for the gradient of the mean loss of these samples, in ``.grad``; answered with that loss."""

    x: Tensor
    y: Tensor


class Losses(NamedTuple):
    """Asks for the loss of each of these samples, without gradient; answered with them."""

    x: Tensor
    y: Tensor


Step = Generator[Gradient | Losses, Tensor, Tensor]
"""One training step: asks for what it needs of the model, and returns the loss on the batch.

That way a contender's step is written once, whoever answers: :meth:`Trainer.step` for one model, or
:mod:`hatam.bench.batched` for many models at a time.
"""


def answered(asking: Generator[Request, Tensor, Result], answer: Callable[[Request], Tensor]) -> Result:
    """Run a generator to its end, answer each of its requests, and return its result."""
    last: Any = None
    try:
        while True:
            last = answer(asking.send(last))
    except StopIteration as end:
        result: Result = end.value
        return result


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

    def steps(self, x: Tensor, y: Tensor) -> Step:
        """What one step on a batch asks for and does."""
        loss = yield Gradient(x, y)
        self.optimizer.step()
        return loss

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Train on one batch; returns the loss at the weights at which the gradient was taken."""
        return answered(self.steps(x, y), self.answer)

    def answer(self, request: Gradient | Losses) -> Tensor:
        """The gradients are counted: a contender's cost is measured, not declared."""
        if isinstance(request, Losses):
            with torch.no_grad():
                return self.loss(self.model(request.x), request.y)
        self.optimizer.zero_grad()
        loss = self.loss(self.model(request.x), request.y).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        self.samples_differentiated += len(request.x)
        return loss.detach()

    def evaluation(self) -> AbstractContextManager[None]:
        """Inside, the model has the weights at which the contender is meant to be evaluated."""
        return nullcontext()


class HATAMTrainer(Trainer):
    """Evaluates HATAM at the straightened point."""

    optimizer: HATAM | FirstHATAM

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
