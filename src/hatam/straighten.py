r"""AdamW without momentum, straightened: the math, on lists of tensors.

The fast iterate z takes AdamW's steps, the average x follows it, and the gradient is taken at the probe w, ahead of x:

.. math::
    v &\leftarrow \beta_2 v + (1 - \beta_2) g^2, \qquad h = \sqrt{v / (1 - \beta_2^t)} + \varepsilon \\
    D &\leftarrow D - \mathrm{lr}_t (g / h + \mathrm{wd}\, w) \\
    x &\leftarrow x + a_t D, \qquad D \leftarrow (1 - a_t) D \\
    w &= x + \kappa_t\, S \circ D, \qquad \kappa_t = 1 - \beta_1 + \mathrm{reach}_t

D = z − x is the lead. Neither x nor z is stored: x is w less the probe's offset, which is computed again from D.

.. math::
    a_t = \min\left(1, \max\left(\frac{\omega_t}{\sum_{s \le t} \omega_s} \cdot
    \frac{\mathrm{peak}_t}{\mathrm{lr}_t}, \frac{1}{\mathrm{memory}}\right)\right),
    \qquad \omega_t = \mathrm{peak}_t^2\, t^r,

.. math::
    \mathrm{reach}_t = \gamma\, \rho_t \left(1 - \frac{\mathrm{lr}_t}{\mathrm{peak}_t}\right)^2 \min\left(1,
    \frac{\mathrm{lr}_t}{\mathrm{fade} \cdot \mathrm{peak}_t}\right), \qquad
    \rho_t = \mathrm{RMS}(x) / \mathrm{RMS}(S \circ D).

The reach takes over as lr falls from its peak, where otherwise ever sharper points would become stable, and runs out at
the end, so that w ends at x. ρ is that of the step before. It may shrink at once and grows by 0.3% a step at most.
Tensors that are not hidden weights have no reach. S = 1, or min(h / mean(h), 3).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

Scalar: TypeAlias = "float | Tensor"

GROWTH = 1.003  # of ρ in a step, at most
CAP = 3.0  # of S
POWER = 2  # of the share of its peak that lr has lost


class Options(NamedTuple):
    """A group's options, and the scalars of a step that all of its tensors share."""

    lr: Scalar
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    gamma: float
    relative: bool  # S = min(h / mean(h), 3), else S = 1
    share: Scalar  # a
    turn: Scalar  # of the reach: what lr leaves to it


class Columns(NamedTuple):
    """Parameters of a group and their state, column by column."""

    params: list[Tensor]
    leads: list[Tensor]  # D
    exp_avg_sqs: list[Tensor]  # v
    steps: list[Tensor]  # t
    kappas: list[Tensor]  # κ of the offset that w has now
    ratios: list[Tensor]  # ρ, 0 while there is no D
    hidden: list[bool]


def share(weight: Scalar, weight_sum: Scalar, lr: Scalar, lr_peak: Scalar, memory: float | None) -> Scalar:
    """a: how much of its way to z the average goes. Where lr is 0 that is all of it, and x ends at z."""
    least = 0.0 if memory is None else 1 / memory
    if isinstance(weight_sum, Tensor):
        found = (weight / weight_sum * lr_peak / lr).clamp(min=least)
        return torch.where((lr == 0) | (weight_sum == 0), 1.0, found).clamp(max=1.0)
    return 1.0 if lr == 0 else min(1.0, max(weight / weight_sum * lr_peak / lr, least))


def turn(lr: Scalar, lr_peak: Scalar, fade: float) -> Scalar:
    """(1 − lr / peak)² min(1, lr / (fade · peak)): 0 at the peak and at the end, and before any lr was above 0."""
    if isinstance(lr_peak, Tensor):
        part = torch.where(lr_peak > 0, lr / lr_peak, 0.0)
        return (1 - part) ** POWER * (part / fade).clamp(max=1.0)
    ratio = float(lr) / lr_peak if lr_peak > 0 else 0.0
    return float((1 - ratio) ** POWER * min(1.0, ratio / fade))


def denominators(exp_avg_sqs: list[Tensor], steps: list[Tensor], o: Options) -> list[Tensor]:
    """h = sqrt(v̂) + ε."""
    hs = list(torch._foreach_sqrt(exp_avg_sqs))
    torch._foreach_div_(hs, [(1 - o.beta2**t) ** 0.5 for t in numbers(steps)])
    torch._foreach_add_(hs, o.eps)
    return hs


def numbers(scalars: list[Tensor]) -> list[Any]:
    """0-dim tensors as numbers, or in float64 where reading them would wait for a device or stop a trace."""
    if torch.compiler.is_compiling() or any(x.device.type != "cpu" for x in scalars):
        return [x.double() for x in scalars]
    return [x.item() for x in scalars]


def offsets(c: Columns, o: Options) -> list[Tensor]:
    """κ S∘D: w less x, as w is now."""
    aheads = c.leads
    if o.relative:
        aheads = _modulated(c.leads, denominators(c.exp_avg_sqs, [t.clamp(min=1) for t in c.steps], o))
    return list(torch._foreach_mul(aheads, numbers(c.kappas)))


def step_(c: Columns, grads: list[Tensor], o: Options) -> None:
    """One step of all tensors."""
    before = offsets(c, o)
    torch._foreach_add_(c.steps, 1)
    torch._foreach_mul_(c.exp_avg_sqs, o.beta2)
    torch._foreach_addcmul_(c.exp_avg_sqs, grads, grads, 1 - o.beta2)
    hs = denominators(c.exp_avg_sqs, c.steps, o)

    # D ← D − lr (g / h + wd w)
    pushes = list(torch._foreach_div(grads, hs))
    if o.weight_decay != 0:
        torch._foreach_add_(pushes, c.params, alpha=o.weight_decay)
    torch._foreach_mul_(pushes, o.lr)
    torch._foreach_sub_(c.leads, pushes)

    # x ← x + a D, D ← (1 − a) D
    torch._foreach_sub_(c.params, before)
    torch._foreach_add_(c.params, list(torch._foreach_mul(c.leads, o.share)))
    torch._foreach_mul_(c.leads, 1 - o.share)

    # w = x + κ S∘D
    aheads = _modulated(c.leads, hs) if o.relative else c.leads
    set_kappas_(c, aheads, o)
    torch._foreach_add_(c.params, list(torch._foreach_mul(aheads, numbers(c.kappas))))


def set_kappas_(c: Columns, aheads: list[Tensor], o: Options) -> None:
    """κ = 1 − β1 + reach of the step, and ρ for the next one; the parameters are x."""
    ratios = numbers(c.ratios)
    for kappa, ratio, hidden in zip(c.kappas, ratios, c.hidden, strict=True):
        kappa.fill_(1 - o.beta1 + (o.gamma * o.turn * ratio if hidden and o.gamma else 0.0))
    if o.gamma:
        x_norms, norms = (numbers(list(torch._foreach_norm(each))) for each in (c.params, aheads))
        for kept, ratio, x, ahead in zip(c.ratios, ratios, x_norms, norms, strict=True):
            kept.fill_(next_ratio(x, ahead, ratio))


def next_ratio(x: Scalar, ahead: Scalar, last: Scalar) -> Scalar:
    """ρ to go on with, from the norms of x and S∘D: the last one where there is no D, or a norm that is not finite."""
    if isinstance(last, Tensor):
        new = torch.as_tensor(x / ahead)
        limited = torch.where(last > 0, torch.minimum(new, GROWTH * last), new)
        return torch.where(torch.isfinite(new), limited, last)
    if not 0 < ahead < math.inf or not x < math.inf:
        return last
    return min(x / ahead, GROWTH * last) if last > 0 else x / ahead


def _modulated(leads: list[Tensor], hs: list[Tensor]) -> list[Tensor]:
    """S∘D with S = min(h / mean(h), 3). Overwrites h."""
    torch._foreach_div_(hs, [h.mean() for h in hs])
    torch._foreach_clamp_max_(hs, CAP)
    torch._foreach_mul_(hs, leads)
    return hs
