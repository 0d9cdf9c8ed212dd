"""The modulator S: how strongly each coordinate is corrected, from how sharp it looks.

``h = sqrt(v̂) + ε`` is Adam's denominator and stands for sharpness; ``mean`` is its mean over the tensor, one step old.
A modulator gives two views of the same S, each for one tensor and, line for line beside it, for lists of tensors:

* ``weight`` is S itself: the factor on the bend of the trajectory in the forms "published" and "raw";
* ``spread`` is h / S: the denominator of the displacement in the form "decoupled".

All of them may overwrite ``h`` and return it.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

Mean: TypeAlias = Any  # a 0-dim tensor, or None for a modulator that needs no mean


class Modulator(Protocol):
    """One factor per coordinate from Adam's denominator and its mean over the tensor."""

    needs_mean: bool

    def weight(self, h: Tensor, mean: Mean, cap: float) -> Tensor: ...
    def spread(self, h: Tensor, mean: Mean, cap: float) -> Tensor: ...
    def foreach_weight(self, hs: list[Tensor], means: list[Mean], cap: float) -> list[Tensor]: ...
    def foreach_spread(self, hs: list[Tensor], means: list[Mean], cap: float) -> list[Tensor]: ...


class Relative:
    """S = min(h / mean, cap): what is sharper than its tensor's average is corrected more."""

    needs_mean = True

    def weight(self, h: Tensor, mean: Mean, cap: float) -> Tensor:
        return h.div_(mean).clamp_(max=cap)

    def spread(self, h: Tensor, mean: Mean, cap: float) -> Tensor:
        return h.div_(cap).clamp_(min=mean)  # h / min(h / mean, cap) = max(mean, h / cap)

    def foreach_weight(self, hs: list[Tensor], means: list[Mean], cap: float) -> list[Tensor]:
        torch._foreach_div_(hs, means)
        torch._foreach_clamp_max_(hs, cap)
        return hs

    def foreach_spread(self, hs: list[Tensor], means: list[Mean], cap: float) -> list[Tensor]:
        torch._foreach_div_(hs, cap)
        torch._foreach_maximum_(hs, means)
        return hs


class Uniform:
    """S = 1: every coordinate alike. This is ATAM."""

    needs_mean = False

    def weight(self, h: Tensor, mean: Mean, cap: float) -> Tensor:
        return h.fill_(1.0)

    def spread(self, h: Tensor, mean: Mean, cap: float) -> Tensor:
        return h

    def foreach_weight(self, hs: list[Tensor], means: list[Mean], cap: float) -> list[Tensor]:
        return [h.fill_(1.0) for h in hs]

    def foreach_spread(self, hs: list[Tensor], means: list[Mean], cap: float) -> list[Tensor]:
        return hs


MODULATORS: dict[str, Modulator] = {"relative": Relative(), "uniform": Uniform()}
