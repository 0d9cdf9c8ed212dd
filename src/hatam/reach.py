r"""The late reach: once lr falls, the gradient is taken ahead of AdamW's iterate, along its momentum.

AdamW updates z. The model holds w. w differs from z in hidden weights only:

.. math::
    w = z - \kappa_t\, u_t, \qquad u_t = S_t\, m_t / h_t, \qquad h_t = \sqrt{v_t / (1 - \beta_2^t)} + \varepsilon

.. math::
    \kappa_t = \min\left(\gamma\, \rho_t\, \tau_t \left(1 - \frac{\mathrm{lr}_t}{\mathrm{peak}_t}\right)^2 \min\left(1,
    \frac{\mathrm{lr}_t}{\mathrm{fade} \cdot \mathrm{peak}_t}\right),\ \mathrm{horizon} \cdot \mathrm{peak}_t\right),
    \qquad \rho_t = \frac{\mathrm{RMS}(z)}{\mathrm{RMS}(u)},

.. math::
    \tau_t = \min\left(1, \frac{\max(0, N_t - 1)}{\mathrm{travel}}\right)^2, \qquad
    N_t = \sum_{s < t} \frac{\mathrm{lr}_s}{\rho_s}.

As lr falls, AdamW becomes stable at sharper points. The reach keeps these points unstable. Until lr falls, w = z and a
step is AdamW's. Below fade · peak the reach shrinks with lr, so that w = z at lr = 0.

N estimates the length of z's path in units of RMS(z). The reach is 0 up to N = 1, because a reach early in training
only slows the training. The horizon bounds the reach by a number of steps at the peak lr.

κ uses ρ of the previous step. ρ is first measured at the first step with γ > 0 and 0 < lr < peak; κ = 0 until after
that step. ρ may fall by any factor per step and grows by at most 0.3%. All steps up to the first measurement count in N
with that ρ and with the peak lr. S is 1, or min(h / mean(h), 3); see :mod:`hatam.modulators`.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import torch
from torch import Tensor

Scalar: TypeAlias = Any  # a float, or a 0-dim tensor (with capturable, a tensor lr or torch.compile)

GROWTH = 1.003  # largest factor by which ρ grows in one step
POWER = 2  # exponent of 1 − lr / peak and of (N − 1) / travel


def lr_factor(lr: Scalar, lr_peak: Scalar, fade: float) -> Scalar:
    """Return (1 − lr / peak)² min(1, lr / (fade · peak)), which is 0 at lr = peak and at lr = 0. 0 if the peak is 0."""
    if isinstance(lr_peak, Tensor):
        lr = lr if isinstance(lr, Tensor) and lr.device == lr_peak.device else float(lr)
        share = torch.where(lr_peak > 0, lr / lr_peak, 0.0)
        return (1 - share) ** POWER * (share / fade).clamp(max=1.0)
    part = float(lr) / lr_peak if lr_peak > 0 else 0.0
    return float((1 - part) ** POWER * min(1.0, part / fade))


def travel_factor(lengths: Scalar, travel: float) -> Scalar:
    """Return τ = min(1, max(0, N − 1) / travel)², from N and travel. τ is 1 if travel is 0."""
    if travel == 0:
        return 1.0
    return ((lengths - 1) / travel).clamp(0.0, 1.0) ** POWER


def next_path_lengths(
    lengths: Tensor, ratios: Tensor, last: Tensor, lr: Scalar, lr_peak: Scalar, steps: Tensor
) -> Tensor:
    """Return N + lr / ρ, or N + steps · peak / ρ at the first measured ρ. N is unchanged where ρ is 0."""
    increments = torch.where(last > 0, lr, steps * lr_peak) / torch.where(ratios > 0, ratios, 1.0)
    return torch.where(ratios > 0, lengths + increments, lengths)


def next_rms_ratios(z_norms: Tensor, u_norms: Tensor, last: Tensor) -> Tensor:
    """Return ρ of several tensors from ‖z‖ and ‖u‖; the last ρ where ‖u‖ is 0 or a value is not finite."""
    new = z_norms / torch.where(u_norms > 0, u_norms, 1.0)
    limited = torch.where(last > 0, torch.minimum(new, GROWTH * last), new)
    return torch.where((u_norms > 0) & (u_norms < math.inf) & (new < math.inf), limited, last)
