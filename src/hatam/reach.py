r"""The late reach: the gradient is taken ahead of AdamW's iterate, along its momentum. The math, on lists of tensors.

AdamW runs on z. The parameters w of the model are ahead of z, in hidden weights alone:

.. math::
    w = z - \kappa_t\, u_t, \qquad u_t = m_t / h_t, \qquad h_t = \sqrt{v_t / (1 - \beta_2^t)} + \varepsilon

.. math::
    \kappa_t = \min\left(\gamma\, \rho_t\, \tau_t \left(1 - \frac{\mathrm{lr}_t}{\mathrm{peak}_t}\right)^2 \min\left(1,
    \frac{\mathrm{lr}_t}{\mathrm{fade} \cdot \mathrm{peak}_t}\right),\ \mathrm{horizon} \cdot \mathrm{peak}_t\right),
    \qquad \rho_t = \frac{\mathrm{RMS}(z)}{\mathrm{RMS}(u)},

.. math::
    \tau_t = \min\left(1, \frac{\max(0, N_t - 1)}{\mathrm{travel}}\right)^2, \qquad
    N_t = \sum_{s < t} \frac{\mathrm{lr}_s}{\rho_s}.

The reach takes over as lr falls from its peak, where otherwise ever sharper points would become stable, and runs out at
the end, so that w ends at z. At the peak w = z, and a step is AdamW's.

N is how far z has come: the length of its path in sizes of the tensor. Where z has not come far, the network has not
done training, and a reach would only slow it: up to N = 1 there is none, and a step is AdamW's. The horizon limits the
reach to a number of steps at the peak lr.

ρ is that of the step before, and is measured once lr has been below its peak. It may shrink at once and grows by 0.3% a
step at most. The steps before the first measurement count in N as that one does.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .straighten import POWER, next_ratio


class Columns(NamedTuple):
    """Parameters of a group and their state, column by column."""

    params: list[Tensor]
    exp_avgs: list[Tensor]  # m
    exp_avg_sqs: list[Tensor]  # v
    steps: list[Tensor]  # t
    reaches: list[Tensor]  # κ of the offset that w has now, 0-dim
    ratios: list[Tensor]  # ρ, 0 while there is no u
    travels: list[Tensor]  # N


def directions(c: Columns, group: Mapping[str, Any]) -> list[Tensor]:
    """u = m / h."""
    beta2 = group["betas"][1]
    hs = list(torch._foreach_sqrt(c.exp_avg_sqs))
    torch._foreach_div_(hs, [(1 - beta2 ** t.item()) ** 0.5 for t in c.steps])
    torch._foreach_add_(hs, group["eps"])
    return list(torch._foreach_div(c.exp_avgs, hs))


def advance_(c: Columns, group: Mapping[str, Any], turn: float) -> None:
    """w = z − κ u, with κ of this step; ρ and N for the next one. The parameters are z."""
    us, furthest = directions(c, group), group["horizon"] * group["lr_peak"]
    for reach, ratio, travel in zip(c.reaches, c.ratios, c.travels, strict=True):
        reach.fill_(min(group["gamma"] * turn * ratio.item() * come(travel.item(), group["travel"]), furthest))
    sizes, z_sizes = (torch._foreach_norm(each) for each in (us, c.params))
    for size, z_size, ratio, travel, t in zip(sizes, z_sizes, c.ratios, c.travels, c.steps, strict=True):
        last = ratio.item()
        now = next_ratio(z_size.item(), size.item(), last)
        if now > 0:
            travel.add_(group["lr"] / now if last > 0 else t.item() * group["lr_peak"] / now)
        ratio.fill_(now)
    _displace_(c, us, 1)


def come(travel: float, whole: float) -> float:
    """τ: what share of the reach z has come far enough for."""
    return min(1.0, max(0.0, travel - 1) / whole) ** POWER if whole > 0 else 1.0


def displace_(c: Columns, group: Mapping[str, Any], sign: int) -> None:
    """w = z − κ u (1), or z = w + κ u (-1), with the κ that is there, so that the one leads back from the other."""
    _displace_(c, directions(c, group), sign)


def _displace_(c: Columns, us: list[Tensor], sign: int) -> None:
    torch._foreach_mul_(us, [-sign * reach.item() for reach in c.reaches])
    torch._foreach_add_(c.params, us)
