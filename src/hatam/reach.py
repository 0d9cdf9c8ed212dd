r"""The late reach: the gradient is taken ahead of AdamW's iterate, along its momentum. The math, on lists of tensors.

AdamW runs on z. The parameters w of the model are ahead of z, in hidden weights alone:

.. math::
    w = z - \kappa_t\, u_t, \qquad u_t = m_t / h_t, \qquad h_t = \sqrt{v_t / (1 - \beta_2^t)} + \varepsilon

.. math::
    \kappa_t = \min\left(\gamma\, \rho_t \left(1 - \frac{\mathrm{lr}_t}{\mathrm{peak}_t}\right)^2 \min\left(1,
    \frac{\mathrm{lr}_t}{\mathrm{fade} \cdot \mathrm{peak}_t}\right),\ \mathrm{horizon} \cdot \mathrm{peak}_t\right),
    \qquad \rho_t = \frac{\mathrm{RMS}(z)}{\mathrm{RMS}(u)}.

The reach takes over as lr falls from its peak, where otherwise ever sharper points would become stable, and runs out at
the end, so that w ends at z. At the peak w = z, and a step is AdamW's.

It is the lesser of two lengths. A share γ of the weights limits it at a high lr, which strains a network already. A
number of steps at the peak lr, the horizon, limits it at a low lr, where training has not come far. ρ is that of the
step before, and is measured while lr is below its peak. It may shrink at once and grows by 0.3% a step at most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

GROWTH = 1.003  # of ρ in a step, at most
POWER = 2  # of the share of its peak that lr has lost


class Columns(NamedTuple):
    """Parameters of a group and their state, column by column."""

    params: list[Tensor]
    exp_avgs: list[Tensor]  # m
    exp_avg_sqs: list[Tensor]  # v
    steps: list[Tensor]  # t
    reaches: list[Tensor]  # κ of the offset that w has now, 0-dim
    ratios: list[Tensor]  # ρ, 0 while there is no u


def turn(lr: float, lr_peak: float, fade: float) -> float:
    """(1 − lr / peak)² min(1, lr / (fade · peak)): 0 at the peak and at the end, and before any lr was above 0."""
    part = lr / lr_peak if lr_peak > 0 else 0.0
    return float((1 - part) ** POWER * min(1.0, part / fade))


def next_ratio(size: float, z_size: float, last: float) -> float:
    """ρ to go on with, from the norms of u and z: the last one where there is no u, or a size is not finite."""
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
    """w = z − κ u, with κ of this step; ρ for the next one. The parameters are z."""
    us, furthest = directions(c, group), group["horizon"] * group["lr_peak"]
    for reach, ratio in zip(c.reaches, c.ratios, strict=True):
        reach.fill_(min(group["gamma"] * turn * ratio.item(), furthest))
    sizes, z_sizes = (torch._foreach_norm(each) for each in (us, c.params))
    for size, z_size, ratio in zip(sizes, z_sizes, c.ratios, strict=True):
        ratio.fill_(next_ratio(size.item(), z_size.item(), ratio.item()))
    _move_(c.params, us, c.reaches, -1)


def _move_(params: list[Tensor], us: list[Tensor], reaches: list[Tensor], sign: int) -> None:
    torch._foreach_mul_(us, [sign * reach.item() for reach in reaches])
    torch._foreach_add_(params, us)
