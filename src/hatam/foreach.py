"""One HATAM step of many tensors: :mod:`hatam.update`, line for line, in torch's multi-tensor operations.

Beyond the state it needs one temporary of the size of the parameters (with ``maximize`` a second one for −g). That is
why a denominator that would have to be kept is computed again, and why ``e`` serves as scratch in the correction.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .update import (
    Options,
    Scalar,
    State,
    averaged_gradient,
    hand_over_mean_,
    least,
    number,
    remember_mean_,
    remember_scale_,
    set_radius_,
)

Tensors = list[Tensor]


def column(states: list[State], key: str) -> Tensors:
    """One entry of every state."""
    return [s[key] for s in states]


def numbers(states: list[State], key: str, o: Options) -> list[Scalar]:
    """A 0-dim entry of every state, see :func:`hatam.update.number`."""
    return [number(s[key], o) for s in states]


def means(states: list[State], key: str) -> list[Tensor | None]:
    """The means of every state, None where the modulator needs none."""
    return [s.get(key) for s in states]


def add_ratios_(xs: Tensors, numerators: Tensors, denominators: Tensors, scales: list[Scalar]) -> None:
    """x ← x + scale · numerator / denominator. Overwrites the denominators where a scale is a tensor."""
    if isinstance(scales[0], Tensor):
        torch._foreach_div_(denominators, scales)
        torch._foreach_addcdiv_(xs, numerators, denominators)
    elif any(scale != 0 for scale in scales):
        torch._foreach_addcdiv_(xs, numerators, denominators, scales)


def denominators(exp_avg_sqs: Tensors, steps: list[Scalar], o: Options) -> Tensors:
    """h = sqrt(v̂) + ε. Before the first step v is 0 and so is v̂, whatever it is divided by."""
    first = [step.clamp(min=1) if isinstance(step, Tensor) else max(step, 1) for step in steps]
    hs = list(torch._foreach_sqrt(exp_avg_sqs))
    torch._foreach_div_(hs, [(1 - o.beta2**step) ** 0.5 for step in first])
    torch._foreach_add_(hs, o.eps)
    return hs


def moments_(exp_avgs: Tensors, exp_avg_sqs: Tensors, grads_m: Tensors, grads_v: Tensors, o: Options) -> None:
    """m ← β1 m + (1 − β1) g_m and v ← β2 v + (1 − β2) g_v²."""
    torch._foreach_lerp_(exp_avgs, grads_m, 1 - o.beta1)
    torch._foreach_mul_(exp_avg_sqs, o.beta2)
    torch._foreach_addcmul_(exp_avg_sqs, grads_v, grads_v, 1 - o.beta2)


def descend_(params: Tensors, exp_avgs: Tensors, hs: Tensors, steps: list[Scalar], o: Options) -> None:
    """w ← w − lr (m̂ / h + wd w)."""
    if o.weight_decay != 0:
        torch._foreach_mul_(params, 1 - o.lr * o.weight_decay)
    add_ratios_(params, exp_avgs, hs, [-o.lr / (1 - o.beta1**step) for step in steps])


def remember_means_(states: list[State], hs: Tensors, o: Options) -> None:
    """Keep mean(h) for the next step, see :func:`hatam.update.remember_mean_`."""
    for state, h in zip(states, hs, strict=True):
        if "denom_mean" in state:
            remember_mean_(state, h, o)


def spreads(states: list[State], hs: Tensors, o: Options) -> Tensors:
    """h / S of the displacement that w has now. Overwrites h."""
    return o.modulator.foreach_spread(hs, means(states, "displacement_mean"), o.cap)


def remember_scales_(params: Tensors, states: list[State], es: Tensors, over: Tensors, o: Options) -> None:
    """Keep the scales of u for the next step, see :func:`hatam.update.remember_scale_`."""
    if o.scaled:
        for param, state, e, spread in zip(params, states, es, over, strict=True):
            remember_scale_(state, param, e, spread, o)


def corrected_gradients(grads: Tensors, states: list[State], hs: Tensors, o: Options) -> Tensors:
    """ĝ = g + γ S c with c = (1 − βc)(g − e); moves e on to e_t = g + βc (e − g). Overwrites h."""
    es = column(states, "exp_avg_grad")
    shifted = [None if mean is None else mean + o.eps for mean in means(states, "denom_mean")]
    corrected = o.modulator.foreach_weight(hs, shifted, o.cap)
    torch._foreach_sub_(es, grads)
    torch._foreach_mul_(corrected, es)
    torch._foreach_mul_(corrected, -o.gamma * (1 - o.beta_c))
    torch._foreach_add_(corrected, grads)
    torch._foreach_mul_(es, o.beta_c)
    torch._foreach_add_(es, grads)
    return corrected


def decoupled_(params: Tensors, grads: Tensors, states: list[State], o: Options) -> None:
    """AdamW on z = w + d with the gradient taken at w; then w is displaced from z again."""
    ms, vs = column(states, "exp_avg"), column(states, "exp_avg_sq")
    own = [(s["exp_avg_grad"], g) for s, g in zip(states, grads, strict=True) if "exp_avg_grad" in s]

    # z = w + d_{t−1}
    es, hs = [averaged_gradient(s) for s in states], denominators(vs, numbers(states, "step", o), o)
    if o.eps < torch.finfo(hs[0].dtype).tiny:
        torch._foreach_clamp_min_(hs, least(hs[0].dtype))  # before the first gradient e is 0, too
    add_ratios_(params, es, spreads(states, hs, o), numbers(states, "displacement_radius", o))
    del hs

    # z ← z − lr (m̂ / h + wd z)
    torch._foreach_add_(column(states, "step"), 1)
    steps = numbers(states, "step", o)
    if own:
        torch._foreach_lerp_([e for e, _ in own], [g for _, g in own], 1 - o.beta_c)
    moments_(ms, vs, grads, grads, o)
    hs = denominators(vs, steps, o)
    for state in states:
        set_radius_(state, o)
        if "displacement_mean" in state:
            hand_over_mean_(state, o)
    remember_means_(states, hs, o)
    descend_(params, ms, hs, steps, o)

    # w = z − d_t, d_t = ρ_t S_t e_t / h_t
    if isinstance(steps[0], Tensor) or isinstance(o.lr, Tensor):  # which the descent has overwritten h for
        del hs
        hs = denominators(vs, steps, o)
    over = spreads(states, hs, o)
    remember_scales_(params, states, es, over, o)
    add_ratios_(params, es, over, [-radius for radius in numbers(states, "displacement_radius", o)])


def corrected_(params: Tensors, grads: Tensors, states: list[State], o: Options, *, raw: bool) -> None:
    """AdamW on ĝ; "raw" builds v from g instead, so that S does not feed on its own correction."""
    ms, vs = column(states, "exp_avg"), column(states, "exp_avg_sq")

    # ĝ = g + γ S c, S from v_{t−1}
    hs = denominators(vs, numbers(states, "step", o), o)
    corrected = corrected_gradients(grads, states, hs, o)

    # w ← w − lr (m̂ / h + wd w)
    torch._foreach_add_(column(states, "step"), 1)
    steps = numbers(states, "step", o)
    moments_(ms, vs, corrected, grads if raw else corrected, o)
    del hs, corrected
    hs = denominators(vs, steps, o)
    remember_means_(states, hs, o)
    descend_(params, ms, hs, steps, o)
