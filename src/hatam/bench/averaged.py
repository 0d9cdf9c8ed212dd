"""Peers that are evaluated at an average of their iterates, or look ahead along one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from schedulefree import AdamWScheduleFreePaper
from torch import Tensor, nn
from torch.optim.optimizer import ParamsT
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .sam import not_negative
from .trainers import Loss, Trainer, restoring


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

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        loss = super().step(x, y)
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


class ScheduleFree(AdamWScheduleFreePaper):  # type: ignore[misc]
    """Schedule-Free AdamW (arXiv 2405.15682): trains at y, evaluates at the average x; lr stays at its peak.

    The class is the one that its authors call the paper's; their default one differs in its first steps.

    Raises:
        ValueError: β1 is 0: x is extrapolated from y with 1 / β1.
    """

    def __init__(self, params: ParamsT, **kwargs: Any) -> None:
        if not 0 < kwargs.get("betas", (0.9, 0.999))[0] < 1:
            raise ValueError(
                f"beta1={kwargs['betas'][0]!r} is out of range: it must be in (0, 1), as x is extrapolated from y with "
                "1 / beta1; the paper's is 0.9"
            )
        super().__init__(params, **kwargs)
        self.train()


class GPA(torch.optim.AdamW):
    """Generalized Primal Averaging on AdamW (arXiv 2512.17131): AdamW, with its momentum and weight decay, moves z by
    the gradient at y = μ_y x + (1 − μ_y) z, and then x ← μ_x x + (1 − μ_x) z.

    The parameters are y between steps; :meth:`straightened` gives x. Weight decay is z's, as in the paper; its authors'
    code also has it at y.

    Args:
        params: as for AdamW.
        mu_x: in [0, 1), 0 is AdamW; 0.9967, the authors' default, stands for 32 local steps of DiLoCo, 0.9 for one.
        mu_y: in [0, 1]; the authors' default is 0.7. 0 is AdamW that is evaluated at an average.
        **kwargs: as for AdamW.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = GPA([w], mu_x=0.5, mu_y=0.0, lr=0.1, weight_decay=0.0)
        >>> w.grad = torch.tensor([3.0, -4.0])
        >>> optimizer.step()
        >>> with optimizer.straightened():
        ...     print(w.detach())
        tensor([0.9500, 1.0500])
    """

    def __init__(self, params: ParamsT, *, mu_x: float, mu_y: float, **kwargs: object) -> None:
        if not 0 <= mu_x < 1:
            raise ValueError(f"mu_x={mu_x!r} is out of range: it must be in [0, 1); 0 is AdamW")
        if not 0 <= mu_y <= 1:
            raise ValueError(f"mu_y={mu_y!r} is out of range: it must be in [0, 1]; the usual one is 0.7")
        super().__init__(params, **kwargs)  # type: ignore[arg-type]
        self.mu_x, self.mu_y = mu_x, mu_y
        self.x: dict[Tensor, Tensor] = {}
        self.z: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step."""
        with torch.enable_grad():
            loss = None if closure is None else closure()
        moving = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p in moving:
            self.x.setdefault(p, p.clone())
            p.copy_(self.z.setdefault(p, p.clone()))
        super().step()
        for p in moving:
            self.x[p].lerp_(p, 1 - self.mu_x)
            self.z[p].copy_(p)
            p.lerp_(self.x[p], self.mu_y)
        return loss

    @contextmanager
    def straightened(self) -> Iterator[None]:
        """Inside, the parameters are x; afterwards exactly what they were."""
        with restoring(self.x):
            with torch.no_grad():
                for p, x in self.x.items():
                    p.copy_(x)
            yield


class EMANesterovTrainer(Trainer):
    """EMA-Nesterov (arXiv 2605.25395): x⁺ = A(x + β_t m), where A is the optimizer's step from there, with the gradient
    there, and m ← decay m + (1 − decay) (x⁺ − x). Evaluates at x.

    As in its authors' module β_t = β lr_t / max lr, and 0 in the warm-up and in the last steps.

    Args:
        ahead: β, the largest β_t, >= 0; 0 is the optimizer alone. Their example has 0.5.
        decay: in [0, 1); their example has 0.99.
        rest: share of the steps, the last, without lookahead, in [0, 1]. They count these for each task.
    """

    def __init__(
        self, model: nn.Module, loss: Loss, optimizer: torch.optim.Optimizer, ahead: float, decay: float, rest: float
    ) -> None:
        super().__init__(model, loss, optimizer)
        if not 0 <= decay < 1:
            raise ValueError(f"decay={decay!r} is out of range: it must be in [0, 1); 0 goes by the last step alone")
        if not 0 <= rest <= 1:
            raise ValueError(f"rest={rest!r} is out of range: it must be in [0, 1]; 1 does not look ahead")
        self.ahead = not_negative("ahead", ahead, "0 does not look ahead")
        self.decay, self.rest, self.beta = decay, rest, 0.0
        self.m = [torch.zeros_like(p, requires_grad=False) for p in model.parameters()]

    def arrive(self, step: int, steps: int, warmup: float, lr: float) -> None:
        super().arrive(step, steps, warmup, lr)
        looks = step >= warmup * steps and steps - step > round(self.rest * steps)
        self.beta = self.ahead * self.schedule(step, steps, warmup) if looks else 0.0

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        before = [p.detach().clone() for p in self.model.parameters()]
        with torch.no_grad():
            for p, m in zip(self.model.parameters(), self.m, strict=True):
                p.add_(m, alpha=self.beta)
        loss = super().step(x, y)
        with torch.no_grad():
            for p, m, old in zip(self.model.parameters(), self.m, before, strict=True):
                m.lerp_(p - old, 1 - self.decay)
        return loss
