"""Schedule-Free AdamW for a machine that has torch alone; a test compares it with its authors' package."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


class ScheduleFree(torch.optim.Optimizer):
    r"""Schedule-Free AdamW, algorithm 1 of arXiv 2405.15682.

    The parameters are y, where the gradient g is taken; x, the average of z, is to be evaluated. With
    :math:`\gamma_t = \mathrm{lr}_t \sqrt{1 - \beta_2^t}` and :math:`v` as Adam's:

    .. math::
        z \leftarrow z - \gamma_t \left( g / (\sqrt{v} + \varepsilon) + \mathrm{wd}\, y \right), \qquad
        x \leftarrow (1 - c_t)\, x + c_t z, \quad c_t = \gamma_t^2 / \sum_{s \le t} \gamma_s^2, \qquad
        y = (1 - \beta_1)\, z + \beta_1 x

    As in the authors' code c has the largest γ so far.

    Args:
        params: one group of parameters, with their names or without.
        **options: ``lr``, ``betas``, ``weight_decay``.
    """

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, {"eps": 1e-8, **options})
        self.y = [p.detach() for p in self.param_groups[0]["params"]]
        self.x, self.z = ([y.clone() for y in self.y] for _ in range(2))
        self.v = [torch.zeros_like(y) for y in self.y]
        self.t, self.largest, self.total = 0, 0.0, 0.0

    def step(self, closure: None = None) -> None:
        """Move z, x and y."""
        group, self.t = self.param_groups[0], self.t + 1
        (beta1, beta2), grads = group["betas"], [p.grad for p in group["params"]]
        lr = group["lr"] * math.sqrt(1 - beta2**self.t)
        self.largest = max(self.largest, lr)
        self.total += self.largest**2
        torch._foreach_mul_(self.v, beta2)
        torch._foreach_addcmul_(self.v, grads, grads, 1 - beta2)
        u = torch._foreach_div(grads, torch._foreach_add(torch._foreach_sqrt(self.v), group["eps"]))
        torch._foreach_add_(u, self.y, alpha=group["weight_decay"])
        torch._foreach_add_(self.z, u, alpha=-lr)
        torch._foreach_lerp_(self.x, self.z, self.largest**2 / self.total)
        torch._foreach_copy_(self.y, torch._foreach_lerp(self.z, self.x, beta1))

    @contextmanager
    def straightened(self) -> Iterator[None]:
        """Inside, the parameters are x."""
        kept = [y.clone() for y in self.y]
        torch._foreach_copy_(self.y, self.x)
        yield
        torch._foreach_copy_(self.y, kept)
