"""One HATAM step of one tensor: the equations, in place, in the order in which they are written.

Each form has up to four stages (:class:`Stages`). Between them lie the moments at which what is stored in fewer bits is
rounded (:mod:`hatam.narrow`): each stage computes with what a later step will read.

============  ===================  ==========================================================
symbol        name                 meaning
============  ===================  ==========================================================
w             ``param``            the parameter
g             ``grad``             its gradient, taken at w
m, v          ``exp_avg``,         Adam's moments
              ``exp_avg_sq``
e             ``exp_avg_grad``     EMA of g at rate βc, not bias-corrected; m itself when βc = β1
c             never stored         bend of the trajectory, EMA(g_t − g_{t−1}) = (1 − βc)(g_t − e_{t−1})
h             ``h``                Adam's denominator, sqrt(v̂) + ε
mean(h)       ``denom_mean``       mean of h over the tensor, one step old
S             never stored         modulator, see :mod:`hatam.modulators`
d, ρ          ``displacement_*``   displacement of w from the straightened point z, and its radius
u             ``span``             S e / h, the displacement before it is scaled
============  ===================  ==========================================================

:mod:`hatam.foreach` is the same, line for line, for lists of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .modulators import Modulator

NO_GRADIENT_YET = 1 + 1e-6  # times ε: the mean of h = ε, with room for rounding; see :func:`no_gradient_yet`
LEAST_SPAN = 0.25  # of the RMS of e / h in pure noise

Scalar: TypeAlias = Any  # a float, or a 0-dim tensor where a host demands it (capturable, tensor lr, torch.compile)
State: TypeAlias = dict[str, Any]


class Options(NamedTuple):
    """The options of one parameter group at one step, with every default resolved."""

    lr: Scalar
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    gamma: float
    beta_c: float
    modulator: Modulator
    cap: float
    radius: Scalar  # ρ_t of the decoupled form; where it is scaled, times the tensor's scale
    grad_factor: Scalar  # 1, or −1 to maximize; divided by the loss scale
    scaled: bool  # the radius is in units that need a scale for each tensor
    capturable: bool
    form: str
    round_param: bool  # bfloat16 parameters at random; else to nearest
    round_state: bool
    seed: int
    growth: float = math.inf  # the factor by which the scale may grow in a step
    ramp: float = 0.0  # β2 where the radius begins small, as √(1 − β2^t)
    pace: Scalar = math.inf  # the share of the radius that each step so far allows
    found_inf: Tensor | None = None  # of a GradScaler, where the host has not read it: not 0, nothing moves


class Stages(NamedTuple):
    """One step of one tensor."""

    moments: Callable[[Tensor, State, Options], None]  # of grad and state: counts the step
    descent: Callable[[Tensor, State, Options], Tensor]  # AdamW's, of z; returns h
    undo: Callable[[Tensor, State, Options], None] | None = None  # comes first: z = w + d
    displace: Callable[[Tensor, Tensor, State, Options], None] | None = None  # comes last, of z and h: w = z − d


def number(x: Tensor, o: Options) -> Scalar:
    """A 0-dim state tensor as a float, unless that would wait for a device or break a graph."""
    return x if o.capturable or torch.is_grad_enabled() or torch.compiler.is_compiling() else x.item()


def kept(x: Tensor) -> Tensor:
    """``x``, safe from later in-place updates where autograd may need it again (``differentiable=True``)."""
    return x.clone() if torch.is_grad_enabled() else x


def add_ratio_(x: Tensor, numerator: Tensor, denominator: Tensor, scale: Scalar) -> None:
    """x ← x + scale · numerator / denominator."""
    if isinstance(scale, Tensor):
        x.add_((kept(numerator) / kept(denominator)).mul_(kept(scale)))
    elif scale != 0:
        x.addcdiv_(kept(numerator), kept(denominator), value=scale)


def denominator(exp_avg_sq: Tensor, step: Scalar, o: Options) -> Tensor:
    """h = sqrt(v̂) + ε. Before the first step v is 0 and so is v̂, whatever it is divided by."""
    first = step.clamp(min=1) if isinstance(step, Tensor) else max(step, 1)
    return (exp_avg_sq.sqrt() / (1 - o.beta2**first) ** 0.5).add_(o.eps)


def moments_(exp_avg: Tensor, exp_avg_sq: Tensor, grad_m: Tensor, grad_v: Tensor, o: Options) -> None:
    """m ← β1 m + (1 − β1) g_m and v ← β2 v + (1 − β2) g_v²."""
    exp_avg.lerp_(grad_m, 1 - o.beta1)
    exp_avg_sq.mul_(o.beta2).addcmul_(grad_v, grad_v, value=1 - o.beta2)


def descend_(param: Tensor, exp_avg: Tensor, h: Tensor, step: Scalar, o: Options) -> None:
    """w ← w − lr (m̂ / h + wd w)."""
    if o.weight_decay != 0:
        param.mul_(1 - o.lr * o.weight_decay)
    add_ratio_(param, exp_avg, h, -o.lr / (1 - o.beta1**step))


def remember_mean_(state: State, h: Tensor, o: Options) -> None:
    """Keep mean(h) for the next step; of a part of a tensor the sum, for :mod:`hatam.sharded`."""
    denom_mean = state["denom_mean"]
    if "shard_sums" in state:
        state["shard_sums"][0] = h.sum(dtype=torch.float64)
    else:
        denom_mean.copy_(next_mean(h.mean(dtype=denom_mean.dtype), denom_mean, h.dtype, o))


def no_gradient_yet(dtype: torch.dtype, o: Options) -> float:
    """The largest mean of h that is that of v = 0: ε as ``dtype`` has it, in float16 perhaps a subnormal number."""
    info = torch.finfo(dtype)
    return NO_GRADIENT_YET * (o.eps * (1 + info.eps) + info.smallest_normal * info.eps)


def next_mean(mean: Tensor, last: Tensor, dtype: torch.dtype, o: Options) -> Tensor:
    """The mean to go on with.

    One coordinate with a NaN or infinite gradient makes the mean useless; the tensor then lives on with its last good
    one, so that the coordinate harms itself alone, as in AdamW. This costs no pass over memory. A last mean of ε is
    that of v = 0 and no measure of what has come since: S would be sqrt(v̂) / ε. Infinity, S = 0, is safe.
    """
    return torch.where(mean < math.inf, mean, torch.where(last > no_gradient_yet(dtype, o), last, math.inf))


def hand_over_mean_(state: State, o: Options) -> None:
    """The mean known before this step is the one that the new displacement uses, and that undoing it will need.

    A mean of ε is that of v = 0: no gradient has come yet, so nothing is known of sharpness, and S = 0. (The choice
    must stay an operation: the inductor of torch.compile takes a plain copy for an alias of ``denom_mean`` and hands
    over the value that is written there next.)
    """
    mean, none = kept(state["denom_mean"]), no_gradient_yet(state["exp_avg_sq"].dtype, o)
    state["displacement_mean"].copy_(torch.where(mean > none, mean, math.inf))


def least_span(o: Options) -> float:
    """The least mean of u² that counts. A gradient that fades away must not blow up the first that comes after it."""
    return LEAST_SPAN**2 * (1 - o.beta_c) / (1 + o.beta_c)


def remember_scale_(state: State, z: Tensor, e: Tensor, spread: Tensor, o: Options) -> None:
    """Keep the scale of u = e / spread for the next step; of a part of a tensor the sums of squares."""
    scale = state["displacement_scale"]
    wide = torch.promote_types(z.dtype, torch.float32)  # the squares of float16 would leave its range
    u2 = (kept(e) / kept(spread)).to(wide).square()
    if "shard_sums" in state:
        state["shard_sums"][2] = u2.sum(dtype=torch.float64)
        state["shard_sums"][1] = z.to(wide).square().sum(dtype=torch.float64)
    else:
        z2 = kept(z).to(wide).square().mean(dtype=scale.dtype)
        scale.copy_(next_scale(z2, u2.mean(dtype=scale.dtype), kept(scale), o))


def next_scale(z2: Tensor, u2: Tensor, last: Tensor, o: Options) -> Tensor:
    """RMS(z) / RMS(u) from squares: 0 before any gradient, the last for a NaN.

    It is one step old when it is used, and a u that swings from step to step would be displaced furthest when it is
    largest. So it may shrink at once, and grow only slowly.
    """
    new = root(z2 / u2.clamp(min=least_span(o)))
    good = (u2 < math.inf) & (new < math.inf)
    if o.growth < math.inf:
        new = torch.where(last > 0, torch.minimum(new, o.growth * last), new)
    return torch.where(u2 == 0, 0.0, torch.where(good, new, last))


def root(x: Tensor) -> Tensor:
    """√x; its derivative at 0 is 0 where autograd asks, for a NaN would come through the choice that follows."""
    if not torch.is_grad_enabled():
        return x.sqrt()
    return torch.where(x == 0, 0.0, torch.where(x == 0, 1.0, x).sqrt())


def set_radius_(state: State, o: Options) -> None:
    """The radius of this step's displacement, which undoing it will need."""
    radius = o.radius * kept(state["displacement_scale"]) if o.scaled else o.radius
    step = number(kept(state["step"]), o)
    if o.ramp:
        radius = radius * (1 - o.ramp**step) ** 0.5
    if isinstance(o.pace, Tensor) or o.pace < math.inf:
        radius = radius * at_most_one(o.pace * step)
    if isinstance(radius, Tensor):
        state["displacement_radius"].copy_(radius)
    else:
        state["displacement_radius"].fill_(radius)


def at_most_one(x: Scalar) -> Scalar:
    """min(1, x)."""
    return x.clamp(max=1.0) if isinstance(x, Tensor) else min(1.0, x)


def corrected_gradient(grad: Tensor, exp_avg_grad: Tensor, h: Tensor, mean: Tensor | None, o: Options) -> Tensor:
    """ĝ = g + γ S c with c = (1 − βc)(g − e). Overwrites h."""
    bend = (grad - exp_avg_grad).mul_(1 - o.beta_c)
    weight = o.modulator.weight(h, None if mean is None else mean + o.eps, o.cap)
    return weight.mul(bend).mul_(o.gamma).add_(grad).to(grad.dtype)  # a 0-dim one's h may be wider


def undo_displacement_(param: Tensor, state: State, o: Options) -> None:
    """z = w + d, with d recomputed from the state that displaced w."""
    h = denominator(state["exp_avg_sq"], number(state["step"], o), o)
    if o.eps < torch.finfo(h.dtype).tiny:
        h.clamp_(min=least(h.dtype))  # before the first gradient e is 0, too
    spread = o.modulator.spread(h, displacement_mean(state), o.cap)
    add_ratio_(param, averaged_gradient(state), spread, number(state["displacement_radius"], o))


def least(dtype: torch.dtype) -> float:
    """A number to divide by that changes no other: in float16, where common ε are below all normal ones, the least."""
    info = torch.finfo(dtype)
    return info.tiny * info.eps if dtype == torch.float16 else info.tiny


def decoupled_moments_(grad: Tensor, state: State, o: Options) -> None:
    """AdamW's moments of the raw gradient, which was taken at w."""
    m, v, e = state["exp_avg"], state["exp_avg_sq"], averaged_gradient(state)
    state["step"] += 1
    if e is not m:
        e.lerp_(grad, 1 - o.beta_c)
    moments_(m, v, grad, grad, o)


def descent_(param: Tensor, state: State, o: Options) -> Tensor:
    """z ← z − lr (m̂ / h + wd z); returns h."""
    step = number(state["step"], o)
    h = denominator(state["exp_avg_sq"], step, o)
    descend_(param, state["exp_avg"], h, step, o)
    return h


def displace_(param: Tensor, h: Tensor, state: State, o: Options) -> None:
    """w = z − d_t, d_t = ρ_t S_t e_t / h_t."""
    mean = state.get("denom_mean")
    set_radius_(state, o)
    if "displacement_mean" in state:
        hand_over_mean_(state, o)
    if mean is not None:
        remember_mean_(state, h, o)
    e, spread = averaged_gradient(state), o.modulator.spread(h, displacement_mean(state), o.cap)
    if o.scaled:
        remember_scale_(state, param, e, spread, o)
    add_ratio_(param, e, spread, -number(state["displacement_radius"], o))


def averaged_gradient(state: State) -> Tensor:
    """e: a buffer of its own, or m where the two are the same."""
    e: Tensor = state["exp_avg_grad"] if "exp_avg_grad" in state else state["exp_avg"]
    return e


def displacement_mean(state: State) -> Tensor | None:
    """The mean in the displacement that w has now, if its modulator needs one."""
    return kept(state["displacement_mean"]) if "displacement_mean" in state else None


def corrected_moments_(grad: Tensor, state: State, o: Options, *, raw: bool) -> None:
    """AdamW's moments of ĝ; "raw" builds v from g instead, so that S does not feed on its own correction."""
    m, v, e = state["exp_avg"], state["exp_avg_sq"], state["exp_avg_grad"]

    # ĝ = g + γ S c, S from v_{t−1}
    h = denominator(v, number(state["step"], o), o)
    corrected = corrected_gradient(grad, kept(e), h, state.get("denom_mean"), o)
    e.lerp_(grad, 1 - o.beta_c)

    state["step"] += 1
    moments_(m, v, corrected, grad if raw else corrected, o)


def corrected_descent_(param: Tensor, state: State, o: Options) -> Tensor:
    """w ← w − lr (m̂ / h + wd w), and mean(h) for the next modulator."""
    h = descent_(param, state, o)
    if "denom_mean" in state:
        remember_mean_(state, h, o)
    return h


def adamw_moments_(grad: Tensor, state: State, o: Options) -> None:
    """γ = 0 where torch's own AdamW cannot serve, as with state of another dtype than the parameter's."""
    state["step"] += 1
    moments_(state["exp_avg"], state["exp_avg_sq"], grad, grad, o)


DECOUPLED = Stages(decoupled_moments_, descent_, undo_displacement_, displace_)
RAW = Stages(partial(corrected_moments_, raw=True), corrected_descent_)
PUBLISHED = Stages(partial(corrected_moments_, raw=False), corrected_descent_)
ADAMW = Stages(adamw_moments_, descent_)


def step(stages: Stages, param: Tensor, grad: Tensor, state: State, o: Options) -> None:
    """One step of one tensor whose gradient and state have its own dtype."""
    if stages.undo:
        stages.undo(param, state, o)
    stages.moments(grad, state, o)
    h = stages.descent(param, state, o)
    if stages.displace:
        stages.displace(param, h, state, o)
