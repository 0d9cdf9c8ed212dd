"""A parameter and its steps, as the tests of the optimizers with a late reach prescribe them."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from hatam.displaced import Displaced

SHAPE = (6, 5)


def start(dtype: torch.dtype = torch.float64) -> nn.Parameter:
    return nn.Parameter(torch.randn(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype))


def cosine(t: int, steps: int) -> float:
    """Five steps of warm-up, then a cosine to 0 at the last step."""
    return min(t / 5, 0.5 + 0.5 * math.cos(math.pi * t / steps))


def step(optimizer: torch.optim.Optimizer, p: Tensor, g: Tensor, lr: float | None = None) -> None:
    if lr is not None:
        optimizer.param_groups[0]["lr"] = lr
    p.grad = g
    optimizer.step()


def published(optimizer: Displaced, p: Tensor) -> Tensor:
    with optimizer.straightened():
        return p.detach().clone()
