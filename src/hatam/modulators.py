"""The modulator S: a factor of each coordinate's reach, from an estimate of its sharpness.

``h = sqrt(v̂) + ε`` is Adam's denominator and estimates sharpness. ``mean`` is its mean over the tensor, one step old.
A modulator computes h / S, the denominator of u, for lists of tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

CAP = 3.0  # largest S


class Modulator(NamedTuple):
    """One modulator S.

    Attributes:
        needs_mean: whether the state keeps the mean of h.
        offset_denominators: returns h / S from h and the means; may overwrite h. The list of means is empty unless
            ``needs_mean``.
    """

    needs_mean: bool
    offset_denominators: Callable[[list[Tensor], list[Tensor]], list[Tensor]]


def _uniform(hs: list[Tensor], means: list[Tensor]) -> list[Tensor]:
    """Return h / S for S = 1."""
    return hs


def _relative(hs: list[Tensor], means: list[Tensor]) -> list[Tensor]:
    """Return h / S = max(mean, h / 3), which is S = min(h / mean, 3)."""
    if torch.is_grad_enabled():  # autograd may need h
        return list(torch._foreach_maximum(torch._foreach_div(hs, CAP), means))
    torch._foreach_div_(hs, CAP)
    torch._foreach_maximum_(hs, means)
    return hs


UNIFORM, RELATIVE = Modulator(False, _uniform), Modulator(True, _relative)

MODULATORS: dict[str, Modulator] = {"uniform": UNIFORM, "relative": RELATIVE}
