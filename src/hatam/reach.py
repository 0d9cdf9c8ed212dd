r"""The late reach: the gradient is taken ahead of AdamW's iterate, along its momentum. The math, on lists of tensors.

AdamW runs on z. The parameters w of the model are ahead of z, in hidden weights alone:

.. math::
    w = z - \kappa_t\, u_t, \qquad u_t = m_t / h_t, \qquad h_t = \sqrt{v_t / (1 - \beta_2^t)} + \varepsilon

.. math::
    \kappa_t = \gamma\, \rho_t\, q_t \left(1 - \frac{\mathrm{lr}_t}{\mathrm{peak}_t}\right)^2 \min\left(1,
    \frac{\mathrm{lr}_t}{\mathrm{fade} \cdot \mathrm{peak}_t}\right), \qquad
    \rho_t = \frac{\mathrm{RMS}(z)}{\mathrm{RMS}(u)}.

The reach takes over as lr falls from its peak, where otherwise ever sharper points would become stable, and runs out at
the end, so that w ends at z. At the peak w = z, and a step is AdamW's.

q is 1 where RMS(u) is at most σ = sqrt((1 − β1) / (1 + β1)), its size in pure noise, and 0 where it is 1.25 σ or more:
there gradients agree from step to step, and a reach would only hold training up. ρ and q are those of the step before,
and are measured while the share of lr is above 0. ρ may shrink at once and grows by 0.3% a step at most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

GROWTH = 1.003  # of ρ in a step, at most
POWER = 2  # of the share of its peak that lr has lost
UNSETTLED = 1.25  # RMS(u), in units of that in pure noise, from which there is no reach


class Columns(NamedTuple):
    """Parameters of a group and their state, column by column."""

    params: list[Tensor]
    exp_avgs: list[Tensor]  # m
    exp_avg_sqs: list[Tensor]  # v
    steps: list[Tensor]  # t
    reaches: list[Tensor]  # κ of the offset that w has now, 0-dim
    ratios: list[Tensor]  # ρ, 0 while there is no u
    factors: list[Tensor]  # q


def turn(lr: float, lr_peak: float, fade: float) -> float:
    """(1 − lr / peak)² min(1, lr / (fade · peak)): 0 at the peak and at the end, and before any lr was above 0."""
    part = lr / lr_peak if lr_peak > 0 else 0.0
    return float((1 - part) ** POWER * min(1.0, part / fade))


def settled(size: float, beta1: float) -> float:
    """q, from RMS(u): 1 up to that in pure noise, and on a line to 0 where it is 1.25 times as large."""
    noise = math.sqrt((1 - beta1) / (1 + beta1))
    return min(1.0, max(0.0, (UNSETTLED - size / noise) / (UNSETTLED - 1)))


def next_ratio(size: float, z_size: float, last: float) -> float:
    """ρ to go on with, from RMS(u) and RMS(z): the last one where there is no u, or a size is not finite."""
    if not 0 < size < math.inf or not z_size < math.inf:
        return last
    return min(z_size / size, GROWTH * last) if last > 0 else z_size / size


def directions(c: Columns, group: Mapping[str, Any]) -> list[Tensor]:
    """u = m / h."""
    beta2 = group["betas"][1]
    hs = list(torch._foreach_sqrt(c.exp_avg_sqs))
    torch._foreach_div_(hs, [(1 - beta2 ** t.item()) ** 0.5 for t in c.steps])
    torch._foreach_add_(hs, group["eps"])
    return list(torch._foreach_div(c.exp_avgs, hs))


def retreat_(c: Columns, group: Mapping[str, Any]) -> None:
    """z = w + κ u. κ stays, so that :func:`return_` leads back."""
    _move_(c.params, directions(c, group), c.reaches, 1)


def return_(c: Columns, group: Mapping[str, Any]) -> None:
    """w = z − κ u, with the κ that is there."""
    _move_(c.params, directions(c, group), c.reaches, -1)


def advance_(c: Columns, group: Mapping[str, Any], turn: float) -> None:
    """w = z − κ u, with κ of this step; ρ and q for the next one. The parameters are z."""
    us = directions(c, group)
    for reach, ratio, factor in zip(c.reaches, c.ratios, c.factors, strict=True):
        reach.copy_(group["gamma"] * turn * ratio * factor)
    sizes, z_sizes = (torch._foreach_norm(each) for each in (us, c.params))
    for u, size, z_size, ratio, factor in zip(us, sizes, z_sizes, c.ratios, c.factors, strict=True):
        rms = size.item() / math.sqrt(max(1, u.numel()))
        ratio.fill_(next_ratio(size.item(), z_size.item(), ratio.item()))
        factor.fill_(settled(rms, group["betas"][0]))
    _move_(c.params, us, c.reaches, -1)


def _move_(params: list[Tensor], us: list[Tensor], reaches: list[Tensor], sign: int) -> None:
    torch._foreach_mul_(us, [sign * reach.item() for reach in reaches])
    torch._foreach_add_(params, us)
