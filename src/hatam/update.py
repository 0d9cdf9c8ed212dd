"""One HATAM step of several tensors, in place. The equations are those of :mod:`hatam.reach`.

A step has four stages: undo, moments, descent, displace. With narrow storage, :mod:`hatam.narrow` rounds between the
stages, so that each stage computes with the values that later steps read.

============  ===================  ==========================================================
symbol        name                 meaning
============  ===================  ==========================================================
w, z          ``param``            the parameter, with and without its offset
g             ``grad``             gradient, taken at w
m, v          ``exp_avg``,         Adam's moments
              ``exp_avg_sq``
h             ``hs``               Adam's denominator, sqrt(v̂) + ε
S             not stored           modulator, see :mod:`hatam.modulators`
mean(h)       ``denom_mean``       mean of h at the last step; relative modulator only
κ             ``reach``            factor of the current offset κ u = z − w
ρ, N          ``rms_ratio``,       inputs of κ at the next step
              ``path_length``
============  ===================  ==========================================================

The step needs one temporary of the size of the parameters. It recomputes a denominator instead of keeping a second
temporary. With ``differentiable``, it overwrites no tensor that autograd needs, see :mod:`hatam.foreach`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from . import reach
from .foreach import Tensors, add_quotients_, added, clone_for_autograd, copy_, quotients
from .modulators import Modulator
from .reach import Scalar

EPS_MARGIN = 1 + 1e-6  # times ε: largest mean of h without a gradient, with a margin for rounding

State: TypeAlias = dict[str, Any]


class Options(NamedTuple):
    """The options of one parameter group at one step, with all defaults resolved."""

    lr: Scalar
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    lr_peak: Scalar
    reach_factor: Scalar  # γ · lr_factor(lr): κ without ρ, τ and the horizon
    travel: float  # N − 1 at which τ reaches 1
    max_reach: Scalar  # upper bound of κ: horizon · peak
    modulator: Modulator
    grad_factor: Scalar  # 1, or −1 to maximize, divided by the loss scale
    grad_scale: Tensor | None  # a GradScaler's loss scale
    capturable: bool
    round_param: bool  # round bfloat16 parameters stochastically, else to nearest
    round_state: bool  # the same of bfloat16 state
    seed: int
    found_inf: Tensor | None = None  # a GradScaler's flag that only the device reads; if it is not 0, nothing moves


class Stages(NamedTuple):
    """The functions that make up one step of several tensors."""

    descent: Callable[[Tensors, list[State], Options], Denominators]  # AdamW's update of z; returns h
    undo: Callable[[Tensors, list[State], Options], None] | None = None  # runs first: z = w + κ u
    displace: Callable[[Tensors, Denominators, list[State], Options], None] | None = None  # runs last: w = z − κ u


def host_scalar(x: Tensor, o: Options) -> Scalar:
    """Return a 0-dim state tensor as a float, or as it is where ``item()`` would wait for a device or break a graph."""
    stays_tensor = o.capturable or not x.is_cpu or torch.is_grad_enabled() or torch.compiler.is_compiling()
    return x if stays_tensor else x.item()


def host_scalars(states: list[State], key: str, o: Options) -> list[Scalar]:
    """Return :func:`host_scalar` of one 0-dim entry of every state."""
    return clone_for_autograd([host_scalar(state[key], o) for state in states])


def column(states: list[State], key: str) -> Tensors:
    """Return one entry of every state."""
    return [state[key] for state in states]


def stacked(states: list[State], key: str) -> Tensor:
    """Return one 0-dim entry of every state as one tensor."""
    return torch.stack(clone_for_autograd(column(states, key)))


class Denominators(NamedTuple):
    """h · factor of several tensors, and the factors. Callers fold each factor into a scalar, which saves a pass."""

    scaled: Tensors  # h · factor = sqrt(v) + ε · factor
    factors: list[Scalar]  # sqrt(1 − β2^t)


def denominators(states: list[State], o: Options) -> Denominators:
    """Return h = sqrt(v̂) + ε. Step 0 uses the bias correction of step 1, because 1 − β2^0 = 0; v is 0 there."""
    steps = host_scalars(states, "step", o)
    counts = [step.clamp(min=1) if isinstance(step, Tensor) else max(step, 1) for step in steps]
    factors = [(1 - o.beta2**step) ** 0.5 for step in counts]
    hs = list(torch._foreach_sqrt(column(states, "exp_avg_sq")))
    hs = added(hs, [o.eps * factor for factor in factors])
    if o.eps < 1000 * torch.finfo(hs[0].dtype).tiny:  # ε · factor may underflow
        torch._foreach_clamp_min_(hs, least(hs[0].dtype))  # v = 0 implies m = 0, so that any positive bound gives 0
    return Denominators(hs, factors)


def offset_denominators(states: list[State], hs: Denominators, o: Options) -> Tensors:
    """Return the denominator of u, (h / S) · factor, with the mean in ``reach_mean``. May overwrite h."""
    if not o.modulator.needs_mean:
        return o.modulator.offset_denominators(hs.scaled, [])
    stored = clone_for_autograd(column(states, "reach_mean"))
    means = [mean * factor for mean, factor in zip(stored, hs.factors, strict=True)]
    return o.modulator.offset_denominators(hs.scaled, means)


def add_offsets_(
    params: Tensors, states: list[State], denoms: Tensors, factors: list[Scalar], o: Options, sign: int
) -> bool:
    """Add ± κ u to every x. May overwrite ``denoms``, from :func:`offset_denominators`; returns True if unchanged.

    Displacement and undo share this code, because different rounding would make z drift.
    """
    reaches = host_scalars(states, "reach", o)
    scales = [sign * reach * factor for reach, factor in zip(reaches, factors, strict=True)]
    return add_quotients_(params, column(states, "exp_avg"), denoms, scales)


def apply_offsets_(params: Tensors, states: list[State], o: Options, sign: int) -> None:
    """Add ± κ u to every x, with κ and the mean of h from the state."""
    hs = denominators(states, o)
    add_offsets_(params, states, offset_denominators(states, hs, o), hs.factors, o, sign)


def undo_(params: Tensors, states: list[State], o: Options) -> None:
    """Compute z = w + κ u in place, with u from the state that displaced w."""
    apply_offsets_(params, states, o, 1)


def least(dtype: torch.dtype) -> float:
    """Return the least denominator: the least normal number; the least subnormal in float16, where ε is often less."""
    info = torch.finfo(dtype)
    return info.tiny * info.eps if dtype == torch.float16 else info.tiny


def moments_(grads: Tensors, states: list[State], o: Options) -> None:
    """Count the step and update m ← β1 m + (1 − β1) g, v ← β2 v + (1 − β2) g²."""
    torch._foreach_add_(column(states, "step"), 1)
    torch._foreach_lerp_(column(states, "exp_avg"), grads, 1 - o.beta1)
    vs = column(states, "exp_avg_sq")
    torch._foreach_mul_(vs, o.beta2)
    torch._foreach_addcmul_(vs, grads, grads, 1 - o.beta2)


def descent_(params: Tensors, states: list[State], o: Options) -> Denominators:
    """Update z ← z − lr (m̂ / h + wd z) and return h."""
    hs = denominators(states, o)
    if o.weight_decay != 0:
        torch._foreach_mul_(params, 1 - o.lr * o.weight_decay)
    steps = zip(host_scalars(states, "step", o), hs.factors, strict=True)
    scales = [-o.lr / (1 - o.beta1**step) * factor for step, factor in steps]
    unchanged = add_quotients_(params, column(states, "exp_avg"), hs.scaled, scales)
    return hs if unchanged else denominators(states, o)


def displace_(params: Tensors, hs: Denominators, states: list[State], o: Options) -> None:
    """Compute w = z − κ u in place, and store ρ, N and mean(h) for the next step. May overwrite h."""
    set_reaches_(states, o)
    means = None
    if o.modulator.needs_mean:
        store_reach_means_(states, o)
        dtype = states[0]["denom_mean"].dtype
        means = [h.mean(dtype=dtype) / factor for h, factor in zip(*hs, strict=True)]
    z_norms, denoms = norms(params), offset_denominators(states, hs, o)
    if not add_offsets_(params, states, denoms, hs.factors, o, -1):
        denoms = offset_denominators(states, denominators(states, o), o)
    us = norms(quotients(column(states, "exp_avg"), denoms))
    measured = Measured(z_norms, [u * factor for u, factor in zip(us, hs.factors, strict=True)], means)
    if "shard_sums" in states[0]:
        store_shard_sums_(states, measured, params)
    else:
        z, u = torch.stack(measured.z_norms), torch.stack(measured.u_norms)
        store_norms_(states, z, u, None if means is None else torch.stack(means), params[0].dtype, o)


class Measured(NamedTuple):
    """The quantities that a step measures of each tensor, or of this process' part of it."""

    z_norms: Tensors
    u_norms: Tensors
    means: Tensors | None  # means of h, if the modulator needs them


def norms(xs: Tensors) -> Tensors:
    """Return Euclidean norms, at least in float32, because squares would leave the range of float16."""
    wide = torch.promote_types(xs[0].dtype, torch.float32)
    return list(torch._foreach_norm(clone_for_autograd(xs), 2, wide))


def set_reaches_(states: list[State], o: Options) -> None:
    """Store κ of this step. The next undo reads it."""
    ratios, lengths = (stacked(states, key) for key in ("rms_ratio", "path_length"))
    reaches = o.reach_factor * ratios * reach.travel_factor(lengths, o.travel)
    as_tensor = isinstance(o.max_reach, Tensor)
    reaches = torch.minimum(reaches, o.max_reach.to(reaches)) if as_tensor else reaches.clamp(max=o.max_reach)
    copy_(column(states, "reach"), list(reaches.unbind()))


def store_reach_means_(states: list[State], o: Options) -> None:
    """Store the last step's mean of h as the mean of the new offset. The next undo reads it.

    A mean of ε means that v = 0, so that nothing is known of sharpness. Infinity replaces it, because S is 0 then. (The
    ``where`` must stay: without it, torch.compile's inductor takes the copy for an alias of ``denom_mean``.)
    """
    means, threshold = stacked(states, "denom_mean"), no_gradient_yet(states[0]["exp_avg_sq"].dtype, o)
    copy_(column(states, "reach_mean"), list(torch.where(means > threshold, means, math.inf).unbind()))


def store_norms_(
    states: list[State], z: Tensor, u: Tensor, means: Tensor | None, dtype: torch.dtype, o: Options
) -> None:
    """Store ρ, N and mean(h) for the next step, from ‖z‖ and ‖u‖, whose ratio is that of their root mean squares.

    If ``found_inf`` is not 0, nothing changes.
    """
    ratios, lengths = (stacked(states, key) for key in ("rms_ratio", "path_length"))
    steps = stacked(states, "step").to(ratios)
    begun = (ratios > 0) | (o.reach_factor > 0)
    next_ratios = torch.where(begun, reach.next_rms_ratios(z.to(ratios), u.to(ratios), ratios), 0.0)
    next_lengths = reach.next_path_lengths(lengths, next_ratios, ratios, o.lr, o.lr_peak, steps)
    new = {"rms_ratio": next_ratios, "path_length": next_lengths}
    if means is not None:
        last = stacked(states, "denom_mean")
        new["denom_mean"] = torch.where(begun, next_means(means.to(last), last, dtype, o), math.inf)
    for key, values in new.items():
        if o.found_inf is not None:
            values = torch.where(o.found_inf.to(values.device) == 0, values, stacked(states, key))
        copy_(column(states, key), list(values.unbind()))


def store_shard_sums_(states: list[State], measured: Measured, params: Tensors) -> None:
    """Store Σz², Σu² and Σh of parts of tensors. :mod:`hatam.sharded` adds them up."""
    for i, (state, param) in enumerate(zip(states, params, strict=True)):
        for j, column_of in enumerate((measured.z_norms, measured.u_norms)):
            state["shard_sums"][j] = column_of[i].double().square()
        if measured.means is not None:
            state["shard_sums"][2] = measured.means[i].double() * param.numel() if param.numel() else 0.0


def no_gradient_yet(dtype: torch.dtype, o: Options) -> float:
    """Return the largest mean of h that v = 0 gives: ε rounded to ``dtype``, in float16 perhaps a subnormal number."""
    info = torch.finfo(dtype)
    smallest = info.smallest_normal * info.eps / math.sqrt(1 - o.beta2)  # least h · factor over the least factor
    return EPS_MARGIN * (o.eps * (1 + info.eps) + smallest)


def next_means(means: Tensor, last: Tensor, dtype: torch.dtype, o: Options) -> Tensor:
    """Return the means of h for the next step, each the last finite one where the new one is not finite.

    A NaN or infinite gradient of one coordinate makes the mean NaN or infinite. With the last mean, that coordinate
    harms itself alone, as in AdamW. A last mean of ε means that v was 0: S would be at its cap everywhere. Infinity
    replaces it, because S is 0 then.
    """
    return torch.where(means < math.inf, means, torch.where(last > no_gradient_yet(dtype, o), last, math.inf))


HATAM_STAGES = Stages(descent_, undo_, displace_)
ADAMW_STAGES = Stages(descent_)


def step_(stages: Stages, params: Tensors, grads: Tensors, states: list[State], o: Options) -> None:
    """Step tensors of one device and dtype, with gradients and state of the same dtype."""
    if stages.undo:
        stages.undo(params, states, o)
    moments_(grads, states, o)
    hs = stages.descent(params, states, o)
    if stages.displace:
        stages.displace(params, hs, states, o)
