"""SAM and its kin: trainers that take their gradients at other weights than those that they move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .packages import SAM
from .trainers import Loss, Trainer, restoring


class SAMTrainer(Trainer):
    """SAM (arXiv 2010.01412): a step along ∇L(w + ρ g / ‖g‖), with the norm over all parameters."""

    optimizer: SAM

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        loss = self.gradient(x, y)
        self.optimizer.first_step()
        with statistics_held(self.model):
            self.gradient(x, y)
        self.optimizer.second_step()
        return loss


class LateSAMTrainer(SAMTrainer):
    """SAM at the end of the run alone (arXiv 2410.10373), the base optimizer before, with its state handed on.

    The paper goes from SGD to SAM on SGD for the last epochs, a few up to an eighth of them; here the base is AdamW.

    Args:
        share: of the steps, the last, in [0, 1]; 1 is SAM. A step costs 1 + share gradients on average.
    """

    def __init__(self, model: nn.Module, loss: Loss, optimizer: SAM, share: float) -> None:
        super().__init__(model, loss, optimizer)
        if not 0 <= share <= 1:
            raise ValueError(f"share={share!r} is out of range: it must be in [0, 1]; 1 is SAM")
        self.share, self.late = share, False

    def arrive(self, step: int, steps: int, warmup: float, lr: float) -> None:
        super().arrive(step, steps, warmup, lr)
        self.late = steps - step <= round(self.share * steps)

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        if self.late:
            return super().step(x, y)
        loss = self.gradient(x, y)
        self.optimizer.base_optimizer.step()
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

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            losses = self.loss(self.model(x), y)
        hardest = losses.topk(max(1, round(self.k_fraction * len(x))), sorted=False).indices
        with statistics_held(self.model):
            super().step(x[hardest], y[hardest])
        return losses.mean()


@contextmanager
def statistics_held(model: nn.Module) -> Iterator[None]:
    """Inside, training leaves BatchNorm's running statistics alone: the first pass over the whole batch makes them.

    Those at perturbed weights or on a part of the batch would pull them off what is evaluated.
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    try:
        for norm in norms:
            norm.track_running_stats = False
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


class ASAM(SAM):
    """Adaptive SAM (arXiv 2102.11600): the gradient is taken at w + ρ T² g / ‖T g‖, the norm over all parameters.

    T = |w| + η for what is called a weight, the gains of norms too, 1 for the rest: the paper's element-wise operator
    without normalized biases, as in its authors' code. Without names it is 1 for vectors. The package's own
    ``adaptive=True`` is not that: it has no η, and T = |w| for biases too, so that a bias that begins at 0 is never
    perturbed.

    Args:
        params: as for the base optimizer, with their names or without.
        base_optimizer: class of the optimizer that takes the step.
        rho: radius of the perturbation, >= 0; 0 is the base optimizer.
        eta: η, >= 0; the paper's is 0.01.
        **kwargs: as for the base optimizer.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.tensor([[2.0, -1.0]]))
        >>> optimizer = ASAM([w], torch.optim.SGD, rho=1.0, eta=0.0, lr=0.1)
        >>> w.grad = torch.tensor([[3.0, 8.0]])
        >>> optimizer.first_step()
        >>> w.detach()  # T g = (6, 8), of norm 10
        tensor([[ 3.2000, -0.2000]])
    """

    def __init__(
        self,
        params: torch.optim.optimizer.ParamsT,
        base_optimizer: type[torch.optim.Optimizer],
        *,
        rho: float,
        eta: float,
        **kwargs: Any,
    ) -> None:
        if not 0 <= eta < float("inf"):
            raise ValueError(f"eta={eta!r} is out of range: it must be in [0, inf); the paper's is 0.01")
        super().__init__(params, base_optimizer, rho=rho, **kwargs)
        self.eta = eta

    @torch.no_grad()
    def first_step(self, zero_grad: bool = False) -> None:
        """To the perturbed weights; :meth:`second_step` returns and lets the base optimizer step."""
        named = [(name, p) for group in self.param_groups for name, p in _named(group) if p.grad is not None]
        params = [p for _, p in named]
        scales = [p.abs() + self.eta if "weight" in name else torch.ones_like(p) for name, p in named]
        scaled = [t * p.grad for t, p in zip(scales, params, strict=True) if p.grad is not None]
        norm = torch.stack([x.norm() for x in scaled]).norm() + self.perturb_eps
        for p, t, x in zip(params, scales, scaled, strict=True):
            self.state[p]["old_p"] = p.clone()
            p.add_(t * x * (self.param_groups[0]["rho"] / norm))
        if zero_grad:
            self.zero_grad()


def _named(group: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a group with their names; a matrix that has none is a weight."""
    params = group["params"]
    return zip(group.get("param_names") or ["weight" if p.ndim > 1 else "" for p in params], params, strict=True)


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
        with restoring(self.state):
            self._displace(self.scale)
            yield


class MSAMTrainer(Trainer):
    """Evaluates MSAM at the undisplaced weights."""

    optimizer: MSAM

    def evaluation(self) -> AbstractContextManager[None]:
        return self.optimizer.undisplaced()
