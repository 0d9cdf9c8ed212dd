"""Arithmetic of lists of tensors in place, except where autograd may need what an operation would overwrite."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

from .reach import Scalar

Tensors: TypeAlias = list[Tensor]


def clone_for_autograd(xs: list[Any]) -> list[Any]:
    """Return clones of the tensors in ``xs`` if autograd may need them after an in-place update, else ``xs``."""
    return [x.clone() if isinstance(x, Tensor) else x for x in xs] if torch.is_grad_enabled() else xs


def copy_(xs: Tensors, ys: Tensors) -> None:
    """Copy every y to its x."""
    if not torch.is_grad_enabled():
        torch._foreach_copy_(xs, ys)  # has no derivative
        return
    for x, y in zip(xs, ys, strict=True):
        x.copy_(y)


def added(xs: Tensors, ys: Any) -> Tensors:
    """Return x + y. Overwrites x unless autograd may need it."""
    if torch.is_grad_enabled():
        return list(torch._foreach_add(xs, ys))
    torch._foreach_add_(xs, ys)
    return xs


def quotients(xs: Tensors, ys: Tensors) -> Tensors:
    """Return x / y. Overwrites y unless autograd may need it or it is float16, whose range 1 / y may leave."""
    if torch.is_grad_enabled() or any(y.dtype == torch.float16 for y in ys):
        return list(torch._foreach_div(clone_for_autograd(xs), ys))
    torch._foreach_reciprocal_(ys)
    torch._foreach_mul_(ys, xs)
    return ys


def add_quotients_(xs: Tensors, ys: Tensors, zs: Tensors, scales: list[Scalar]) -> bool:
    """Add scale · y / z to every x. May overwrite z; returns True if every z is unchanged."""
    if any(isinstance(scale, Tensor) for scale in scales):
        found = quotients(ys, zs)
        torch._foreach_mul_(found, scales)
        torch._foreach_add_(xs, found)
        return torch.is_grad_enabled()
    torch._foreach_addcdiv_(xs, clone_for_autograd(ys), zs, scales)
    return True
