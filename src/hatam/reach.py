r"""The late reach: the gradient is taken ahead of AdamW's iterate, along its momentum, once lr falls.

AdamW runs on z. The parameters w of the model are ahead of z, in hidden weights alone:

.. math::
    w = z - \kappa_t\, u_t, \qquad u_t = S_t\, m_t / h_t, \qquad h_t = \sqrt{v_t / (1 - \beta_2^t)} + \varepsilon

.. math::
    \kappa_t = \gamma\, \rho_t\, q_t \left(1 - \frac{\mathrm{lr}_t}{\mathrm{peak}_t}\right)^2 \min\left(1,
    \frac{\mathrm{lr}_t}{\mathrm{fade} \cdot \mathrm{peak}_t}\right), \qquad
    \rho_t = \frac{\mathrm{RMS}(z)}{\mathrm{RMS}(u)}.

The reach takes over as lr falls from its peak, where otherwise ever sharper points would become stable, and runs out at
the end, so that w ends at z. Until lr falls, w = z and a step is AdamW's.

q is 1 where RMS(m / h) is at most σ = sqrt((1 − β1) / (1 + β1)), its size in pure noise, and 0 where it is 1.25 σ or
more: there gradients agree from step to step, and a reach would only hold training up. ρ and q are those of the step
before, and are measured from the first step on at which lr is below its peak. ρ may shrink at once and grows by 0.3% a
step at most. S is 1, or min(h / mean(h), 3); see :mod:`hatam.modulators`.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import torch
from torch import Tensor

Scalar: TypeAlias = Any  # a float, or a 0-dim tensor where a host demands it (capturable, tensor lr, torch.compile)

GROWTH = 1.003  # of ρ in a step, at most
POWER = 2  # of the share of its peak that lr has lost
UNSETTLED = 1.25  # RMS(m / h), in units of that in pure noise, from which there is no reach


def turn(lr: Scalar, lr_peak: Scalar, fade: float) -> Scalar:
    """(1 − lr / peak)² min(1, lr / (fade · peak)): 0 at the peak and at the end, and before any lr was above 0."""
    if isinstance(lr_peak, Tensor):
        lr = lr if isinstance(lr, Tensor) and lr.device == lr_peak.device else float(lr)
        share = torch.where(lr_peak > 0, lr / lr_peak, 0.0)
        return (1 - share) ** POWER * (share / fade).clamp(max=1.0)
    part = float(lr) / lr_peak if lr_peak > 0 else 0.0
    return float((1 - part) ** POWER * min(1.0, part / fade))


def noise(beta1: float) -> float:
    """σ: RMS(m / h) where the gradient is nothing but noise."""
    return math.sqrt((1 - beta1) / (1 + beta1))


def settled(sizes: Tensor, last: Tensor, beta1: float) -> Tensor:
    """q from RMS(m / h) of several tensors; the last one where a size is not finite."""
    new = ((UNSETTLED - sizes / noise(beta1)) / (UNSETTLED - 1)).clamp(min=0.0, max=1.0)
    return torch.where(sizes < math.inf, new, last)


def next_ratios(z_sizes: Tensor, u_sizes: Tensor, last: Tensor) -> Tensor:
    """ρ from RMS(z) and RMS(u) of several tensors; the last one where there is no u, or a size is not finite."""
    new = z_sizes / torch.where(u_sizes > 0, u_sizes, 1.0)
    grown = torch.where(last > 0, torch.minimum(new, GROWTH * last), new)
    return torch.where((u_sizes > 0) & (u_sizes < math.inf) & (new < math.inf), grown, last)
