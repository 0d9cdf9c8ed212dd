"""SAM and its relatives: optimizers that take their gradient at displaced weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT

from .trainers import Loss, Trainer, restoring, statistics_held

Closure = Callable[[], Any]


class SAM(torch.optim.AdamW):
    """Sharpness-aware minimization on AdamW (arXiv 2010.01412).

    AdamW steps from w with the gradient at w + ρ g / ‖g‖₂; the norm is over all parameters. A step calls the closure
    twice. The state and its checkpoint are AdamW's.

    Args:
        params: as for AdamW.
        rho: radius ρ of the perturbation, >= 0; 0 is AdamW at twice the cost.
        **kwargs: as for AdamW.

    Raises:
        ValueError: ``rho`` is out of range.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = SAM([w], rho=0.5, lr=0.1)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = w.square().sum()
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure).item()
        25.0
        >>> w.grad  # 2 (w + ρ w / ‖w‖)
        tensor([6.6000, 8.8000])
    """

    def __init__(self, params: ParamsT, *, rho: float, **kwargs: Any) -> None:
        super().__init__(params, **kwargs)
        self.rho = not_negative("rho", rho, "0 is AdamW")
        self.active = True

    @torch.no_grad()
    def step(self, closure: Closure) -> Any:  # type: ignore[override]
        """Take one step; ``closure`` evaluates the loss and leaves its gradient."""
        with torch.enable_grad():
            loss = closure()
        if self.active:
            moved = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
            gradients = [p.grad for p in moved]
            norm = torch.stack(torch._foreach_norm(gradients)).norm()
            with restoring(moved):
                torch._foreach_add_(moved, torch._foreach_mul(gradients, self.rho / (norm + 1e-12)))
                with torch.enable_grad():
                    closure()
        super().step()
        return loss


class MSAM(torch.optim.AdamW):
    """Momentum-SAM on AdamW (arXiv 2401.12033): the gradient is taken at w − ρ m / ‖m‖₂, the norm over all parameters.

    The parameters stay displaced between steps; :meth:`straightened` gives w.

    Args:
        params: as for AdamW.
        rho: radius of the displacement, >= 0; 0 is AdamW.
        **kwargs: as for AdamW.

    Raises:
        ValueError: ``rho`` is out of range.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = MSAM([w], rho=2.0, lr=0.1)
        >>> w.grad = torch.tensor([3.0, 4.0])
        >>> optimizer.step()
        >>> with optimizer.straightened():
        ...     print(w.detach())
        tensor([0.8990, 0.8990])
    """

    def __init__(self, params: ParamsT, *, rho: float, **kwargs: Any) -> None:
        super().__init__(params, **kwargs)
        self.rho = not_negative("rho", rho, "0 is AdamW")
        self.scale = 0.0  # ρ / ‖m‖ of the present displacement

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Any:
        """Take one step."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        self._displace(self.scale)
        super().step()
        norm = torch.stack([state["exp_avg"].norm() for state in self.state.values()]).norm()
        self.scale = self.rho / (float(norm) + 1e-12)
        self._displace(-self.scale)
        return loss

    @torch.no_grad()
    def _displace(self, scale: float) -> None:
        for p, state in self.state.items():
            p.add_(state["exp_avg"], alpha=scale)

    @contextmanager
    def straightened(self) -> Iterator[None]:
        """Inside, the parameters are w; afterwards exactly what they were."""
        with restoring(self.state):
            self._displace(self.scale)
            yield


class LateSAMTrainer(Trainer):
    """SAM in the last part of the run alone (arXiv 2410.10373), AdamW before, with one state.

    Args:
        share: of the steps, the last, in [0, 1]; 1 is SAM. A step costs 1 + share gradients on average.
    """

    optimizer: SAM

    def __init__(self, model: nn.Module, loss: Loss, optimizer: SAM, share: float) -> None:
        super().__init__(model, loss, optimizer)
        if not 0 <= share <= 1:
            raise ValueError(f"share={share!r} is out of range: it must be in [0, 1]; 1 is SAM")
        self.share = share

    def arrive(self, step: int, steps: int, warmup: float, lr: float) -> None:
        super().arrive(step, steps, warmup, lr)
        self.optimizer.active = steps - step <= round(self.share * steps)


class KSAMTrainer(Trainer):
    """K-SAM (arXiv 2210.12864): SAM on the samples of highest loss, found by a forward pass without gradient.

    Args:
        k_fraction: k as a share of the batch, in (0, 1]; 1 is SAM, 1/2 costs one full gradient and a forward pass.
    """

    def __init__(self, model: nn.Module, loss: Loss, optimizer: SAM, k_fraction: float) -> None:
        super().__init__(model, loss, optimizer)
        if not 0 < k_fraction <= 1:
            raise ValueError(f"k_fraction={k_fraction!r} is out of range: it must be in (0, 1]; 1 is SAM")
        self.k_fraction = k_fraction

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            losses = self.loss(self.model(x), y)
        hardest = losses.topk(max(1, round(self.k_fraction * len(x))), sorted=False).indices
        with statistics_held(self.model):
            super().step(x[hardest], y[hardest])
        return losses.mean()


def not_negative(name: str, value: float, zero: str) -> float:
    """``value`` if it is in [0, inf)."""
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name}={value!r} is out of range: it must be in [0, inf); {zero}")
    return value
