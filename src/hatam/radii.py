"""In what unit the strength γ of the decoupled form measures the displacement d = ρ S e / h.

* "absolute": at the start of training the displacement of all parameters together has the Euclidean norm γ, as SAM's
  perturbation has ρ; from then on it grows with the weights. ρ = min(γ / ‖w_0‖, 1/4) RMS(z) / RMS(S e / h) over each
  tensor (RMS: root mean square), with ‖w_0‖ the norm of all that the optimizer was given. It is less in the first
  1 / (1 − β2) steps, √(1 − β2^t) of it, and wherever RMS(z) / RMS(S e / h) has just grown, which it follows by 0.3% a
  step: a tensor that begins at zero is hardly displaced for a thousand steps. Where γ is the default, the root mean
  square of d, beside the first weights, is also at most 2% of lr_peak · t, about as far as t steps of Adam may go.
* "relative": ρ = γ RMS(z) / RMS(S e / h), so that d is γ times as large as each tensor's weights.
* "lr": ρ is γ times the peak learning rate.

"absolute" counts the parameters of one optimizer: of several that share a network, each displaces by its whole γ.
What is measured of a tensor is that of the step before: the pass over memory that writes it finds it for free.
All are held until lr has fallen to ``fade`` of its peak, and then run out with it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .update import Scalar

DEFAULT_FADE = 0.1
GROWTH = 1.003  # the factor by which the scale of a norm may grow in a step; it may shrink at once
LARGEST = 0.25  # of the weights: the largest share, however small the weights that training began with


class Start(NamedTuple):
    """What is known of all parameters of an optimizer as its training starts."""

    norm: float  # ‖w_0‖
    numel: int | None  # None in a run that began before it was kept


class Radius(NamedTuple):
    """One unit.

    Attributes:
        gamma: the strength unless the user gives one.
        needs_scale: whether a state keeps the scale of u = S e / h, which is RMS(z) / RMS(u).
        is_norm: whether γ is the norm over all parameters, and not a share of each tensor's. Then the scale grows
            slowly, and the radius begins small and comes to its full size as v fills, as √(1 − β2^t).
        spiky: the strength unless the user gives one where a lone spike of the gradient displaces more than twice as
            far as noise does: √((1 − βc²) / (1 − β2)) as far, since the size of u is one step old.
        cap: of the radius where the user gives no strength, as a share of lr_peak · t; see :func:`pace`.
    """

    gamma: float
    needs_scale: bool
    is_norm: bool = False
    spiky: float | None = None
    cap: float = math.inf

    def default(self, beta_c: float, beta2: float) -> float:
        """The strength unless the user gives one."""
        return self.gamma if self.spiky is None or 1 - beta_c**2 <= 4 * (1 - beta2) else self.spiky


RADII = {
    "absolute": Radius(0.5, needs_scale=True, is_norm=True, spiky=0.35, cap=0.02),
    "relative": Radius(gamma=0.005, needs_scale=True),
    "lr": Radius(gamma=1.0, needs_scale=False),
}


def share(gamma: float, start: Start | None) -> float:
    """How large a displacement of the norm γ is beside the first weights; 0 where these are not known."""
    if start is None:
        return 0.0
    return min(gamma / start.norm, LARGEST) if start.norm > 0 else LARGEST


def needs_scale(group: Mapping[str, Any]) -> bool:
    """Whether the radius is in units that need a scale for each tensor."""
    return group["radius"] is not None and RADII[group["radius"]].needs_scale


def needs_norm(group: Mapping[str, Any]) -> bool:
    """Whether the radius is one over all parameters, to which those of the group belong."""
    return group["gamma"] != 0 and group["radius"] is not None and RADII[group["radius"]].is_norm


def radius(group: Mapping[str, Any], lr: Scalar, lr_peak: Scalar, start: Start | None) -> Scalar:
    """ρ_t = γ · min(lr_peak, lr_t / fade): held until lr has fallen to ``fade`` of its peak, then fading with it.

    In units that need a scale, γ · min(1, lr_t / (fade · lr_peak)), which each tensor's scale is still to multiply; γ
    as a norm is the share that it is of ‖w_0‖.
    """
    fade = DEFAULT_FADE if group["fade"] is None else group["fade"]
    if needs_scale(group):
        size: float = share(group["gamma"], start) if needs_norm(group) else group["gamma"]
        return size * faded(lr, lr_peak, fade)
    if isinstance(lr_peak, Tensor) and not (isinstance(lr, Tensor) and lr.device == lr_peak.device):
        return group["gamma"] * lr_peak.clamp(max=float(lr) / fade)  # on the peak's device, without waiting for it
    if isinstance(lr, Tensor):
        return group["gamma"] * torch.minimum(torch.as_tensor(lr_peak), torch.as_tensor(lr / fade))
    return group["gamma"] * min(lr_peak, lr / fade)


def pace(group: Mapping[str, Any], lr_peak: Scalar, start: Start | None) -> Scalar:
    """The share of the radius that each step allows: beside the first weights the root mean square of d over all
    parameters is at most ``radius_cap`` of lr_peak · t, about as far as t steps of Adam may take a coordinate.
    """
    full, cap = share(group["gamma"], start), group["radius_cap"]
    if start is None or start.numel is None or cap in (None, math.inf) or full * start.norm == 0:
        return math.inf
    return cap * lr_peak * (start.numel**0.5 / (full * start.norm))


def faded(lr: Scalar, lr_peak: Scalar, fade: float) -> Scalar:
    """min(1, lr_t / (fade · lr_peak)); 0 while lr has always been 0."""
    if isinstance(lr_peak, Tensor):
        lr = lr if isinstance(lr, Tensor) and lr.device == lr_peak.device else float(lr)
        return torch.where(lr_peak > 0, (lr / (fade * lr_peak)).clamp(max=1.0), 0.0)
    if isinstance(lr, Tensor):
        return torch.where(lr > 0, (lr / (fade * lr_peak)).clamp(max=1.0), 0.0) if lr_peak else 0.0 * lr
    return min(1.0, lr / (fade * lr_peak)) if lr_peak else 0.0
