r"""The late reach: the gradient is taken ahead of AdamW's iterate, along its momentum, once lr falls.

AdamW runs on z. The parameters w of the model are ahead of z, in hidden weights alone:

.. math::
    w = z - \kappa_t\, u_t, \qquad u_t = S_t\, m_t / h_t, \qquad h_t = \sqrt{v_t / (1 - \beta_2^t)} + \varepsilon

.. math::
    \kappa_t = \min\left(\gamma\, \rho_t\, \tau_t \left(1 - \frac{\mathrm{lr}_t}{\mathrm{peak}_t}\right)^2 \min\left(1,
    \frac{\mathrm{lr}_t}{\mathrm{fade} \cdot \mathrm{peak}_t}\right),\ \mathrm{horizon} \cdot \mathrm{peak}_t\right),
    \qquad \rho_t = \frac{\mathrm{RMS}(z)}{\mathrm{RMS}(u)},

.. math::
    \tau_t = \min\left(1, \frac{\max(0, N_t - 1)}{\mathrm{travel}}\right)^2, \qquad
    N_t = \sum_{s < t} \frac{\mathrm{lr}_s}{\rho_s}.

The reach takes over as lr falls from its peak, where otherwise ever sharper points would become stable, and runs out at
the end, so that w ends at z. Until lr falls, w = z and a step is AdamW's.

N is how far z has come: the length of its path in sizes of the tensor. Where z has not come far, the network has not
done training, and a reach would only slow it: up to N = 1 there is none, and a step is AdamW's. The horizon limits the
reach to a number of steps at the peak lr.

ρ is that of the step before, and is measured from the first step on at which lr is below its peak. It may shrink at
once and grows by 0.3% a step at most. The steps before the first measurement count in N as that one does. S is 1, or
min(h / mean(h), 3); see :mod:`hatam.modulators`.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import torch
from torch import Tensor

Scalar: TypeAlias = Any  # a float, or a 0-dim tensor where a host demands it (capturable, tensor lr, torch.compile)

GROWTH = 1.003  # of ρ in a step, at most
POWER = 2  # of the share of its peak that lr has lost


def turn(lr: Scalar, lr_peak: Scalar, fade: float) -> Scalar:
    """(1 − lr / peak)² min(1, lr / (fade · peak)): 0 at the peak and at the end, and before any lr was above 0."""
    if isinstance(lr_peak, Tensor):
        lr = lr if isinstance(lr, Tensor) and lr.device == lr_peak.device else float(lr)
        share = torch.where(lr_peak > 0, lr / lr_peak, 0.0)
        return (1 - share) ** POWER * (share / fade).clamp(max=1.0)
    part = float(lr) / lr_peak if lr_peak > 0 else 0.0
    return float((1 - part) ** POWER * min(1.0, part / fade))


def come(travels: Scalar, whole: float) -> Scalar:
    """τ: what share of the reach z has come far enough for."""
    if whole == 0:
        return 1.0
    return ((travels - 1) / whole).clamp(0.0, 1.0) ** POWER


def next_travels(travels: Tensor, ratios: Tensor, last: Tensor, lr: Scalar, lr_peak: Scalar, steps: Tensor) -> Tensor:
    """N from ρ and the ρ before it. Steps before the first ρ count as that one, at the peak lr."""
    way = torch.where(last > 0, lr, steps * lr_peak) / torch.where(ratios > 0, ratios, 1.0)
    return torch.where(ratios > 0, travels + way, travels)


def next_ratios(z_sizes: Tensor, u_sizes: Tensor, last: Tensor) -> Tensor:
    """ρ from RMS(z) and RMS(u) of several tensors; the last one where there is no u, or a size is not finite."""
    new = z_sizes / torch.where(u_sizes > 0, u_sizes, 1.0)
    grown = torch.where(last > 0, torch.minimum(new, GROWTH * last), new)
    return torch.where((u_sizes > 0) & (u_sizes < math.inf) & (new < math.inf), grown, last)
