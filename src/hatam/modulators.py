"""The modulator S: how far each coordinate reaches, from how sharp it looks.

``h = sqrt(v̂) + ε`` is Adam's denominator and stands for sharpness; ``mean`` is its mean over the tensor, one step old.
A modulator gives h / S, the denominator of the reach, for lists of tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

CAP = 3.0  # of S


class Modulator(NamedTuple):
    """One modulator.

    Attributes:
        needs_mean: whether the state keeps the mean of h.
        reach_denominators: h / S from h, which it may overwrite and return, and the means, an empty list where they
            are not kept.
    """

    needs_mean: bool
    reach_denominators: Callable[[list[Tensor], list[Tensor]], list[Tensor]]


def _uniform(hs: list[Tensor], means: list[Tensor]) -> list[Tensor]:
    """S = 1."""
    return hs


def _relative(hs: list[Tensor], means: list[Tensor]) -> list[Tensor]:
    """S = min(h / mean, 3), and so h / S = max(mean, h / 3)."""
    if torch.is_grad_enabled():  # autograd may need h
        return list(torch._foreach_maximum(torch._foreach_div(hs, CAP), means))
    torch._foreach_div_(hs, CAP)
    torch._foreach_maximum_(hs, means)
    return hs


UNIFORM, RELATIVE = Modulator(False, _uniform), Modulator(True, _relative)

MODULATORS: dict[str, Modulator] = {"uniform": UNIFORM, "relative": RELATIVE}
