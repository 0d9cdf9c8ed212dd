"""MARS-AdamW in its approximate form."""

from __future__ import annotations

import torch
from torch import Tensor


class MARS(torch.optim.AdamW):
    """AdamW on corrected gradients (arXiv 2411.10438): c = g_t + γ β1 / (1 − β1) (g_t − g_{t−1}), clipped to norm 1.

    The approximate form, whose g_{t−1} is the last batch's gradient, so that a step costs one; g_0 = 0. The clip is per
    tensor, and vectors are treated as matrices are. pytorch-optimizer's has another denominator than the paper: it adds
    1e-15 under the root, which is 3e-8 outside it, and divides ε by the bias correction.

    Args:
        params: as for AdamW.
        gamma: γ, >= 0; 0 is AdamW on clipped gradients. The paper's is 0.025.
        **kwargs: as for AdamW.

    Example:
        >>> import torch
        >>> w = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = MARS([w], gamma=0.025, lr=0.1, weight_decay=0.0)
        >>> w.grad = torch.tensor([3.0, -4.0])
        >>> optimizer.step()
        >>> w.detach()
        tensor([-0.1000,  0.1000])
    """

    def __init__(self, params: torch.optim.optimizer.ParamsT, *, gamma: float, **kwargs: object) -> None:
        if not 0 <= gamma < float("inf"):
            raise ValueError(f"gamma={gamma!r} is out of range: it must be in [0, inf); the paper's is 0.025")
        super().__init__(params, **kwargs)  # type: ignore[arg-type]
        self.gamma = gamma
        self.last: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step along the corrected gradients; ``.grad`` is as it was afterwards."""
        raw: dict[Tensor, Tensor] = {}
        for group in self.param_groups:
            beta1, _ = group["betas"]
            for p in group["params"]:
                if p.grad is not None:
                    raw[p] = g = p.grad
                    last = self.last.setdefault(p, torch.zeros_like(p))
                    c = g + (g - last) * (self.gamma * beta1 / (1 - beta1))
                    p.grad = c / c.norm().clamp(min=1)
                    last.copy_(g)
        super().step(closure)
        for p, g in raw.items():
            p.grad = g
