"""How a contender takes one training step. Most only need an optimizer; SAM and its kin own the whole step."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, TypeVar

import torch
from pytorch_optimizer import SAM
from torch import Tensor, nn

from hatam import HATAM

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
    """

    def __init__(self, model: nn.Module, loss: Loss, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.samples_differentiated = 0

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

    optimizer: HATAM

    def evaluation(self) -> AbstractContextManager[None]:
        return self.optimizer.straightened()


class SAMTrainer(Trainer):
    """SAM (arXiv 2010.01412): a step along ∇L(w + ρ g / ‖g‖), with the norm over all parameters."""

    optimizer: SAM

    def steps(self, x: Tensor, y: Tensor) -> Step:
        loss = yield Gradient(x, y)
        self.optimizer.first_step()
        yield Gradient(x, y)
        self.optimizer.second_step()
        return loss


class KSAMTrainer(SAMTrainer):
    """K-SAM (arXiv 2210.12864): SAM on the samples of highest loss, found by a forward pass without gradient.

    Args:
        k_fraction: k as a share of the batch, in (0, 1]; 1 is SAM, 1/2 costs one full gradient and a forward pass.
    """

    def __init__(self, model: nn.Module, loss: Loss, optimizer: SAM, k_fraction: float) -> None:
        super().__init__(model, loss, optimizer)
        if not 0 < k_fraction <= 1:
            raise ValueError(f"k_fraction={k_fraction!r} is out of range: it must be in (0, 1]; 1 is SAM")
        self.k_fraction = k_fraction

    def steps(self, x: Tensor, y: Tensor) -> Step:
        losses = yield Losses(x, y)
        hardest = losses.topk(max(1, round(self.k_fraction * len(x))), sorted=False).indices
        yield from super().steps(x[hardest], y[hardest])
        return losses.mean()


class MSAM(torch.optim.AdamW):
    """Momentum-SAM on AdamW (arXiv 2401.12033): the gradient is taken at w − ρ m / ‖m‖, the norm over all parameters.

    No package has it. The parameters stay displaced between steps; :meth:`undisplaced` gives w.

    Args:
        params: as for AdamW.
        rho: radius of the displacement, >= 0; 0 is AdamW.
        **kwargs: as for AdamW.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = MSAM([w], rho=2.0, lr=0.1)
        >>> w.grad = torch.tensor([3.0, 4.0])
        >>> optimizer.step()
        >>> with optimizer.undisplaced():
        ...     print(w.detach())
        tensor([0.8990, 0.8990])
    """

    def __init__(self, params: torch.optim.optimizer.ParamsT, *, rho: float, **kwargs: object) -> None:
        if not 0 <= rho < float("inf"):
            raise ValueError(f"rho={rho!r} is out of range: it must be in [0, inf); 0 is AdamW")
        super().__init__(params, **kwargs)  # type: ignore[arg-type]
        self.rho = rho
        self.scale = 0.0  # ρ / ‖m‖ of the displacement that the parameters have now

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        self._displace(self.scale)
        super().step(closure)
        norm = torch.stack([state["exp_avg"].norm() for state in self.state.values()]).norm()
        self.scale = self.rho / (float(norm) + 1e-12)
        self._displace(-self.scale)

    @torch.no_grad()
    def _displace(self, scale: float) -> None:
        for p, state in self.state.items():
            p.add_(state["exp_avg"], alpha=scale)

    @contextmanager
    def undisplaced(self) -> Iterator[None]:
        """Inside, the parameters are w; afterwards exactly what they were."""
        saved = [(p, p.detach().clone()) for p in self.state]
        self._displace(self.scale)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, displaced in saved:
                    p.copy_(displaced)


class MSAMTrainer(Trainer):
    """Evaluates MSAM at the undisplaced weights."""

    optimizer: MSAM

    def evaluation(self) -> AbstractContextManager[None]:
        return self.optimizer.undisplaced()
