"""A step whose state or parameters have other dtypes than the arithmetic: widened, updated, rounded, tensor by tensor.

A fused kernel does the same in registers. The rounding lies between the stages of a form. The displacement is undone
from what was stored, so it has to be computed from that, too. And z is rounded as AdamW's parameter would be, w to
nearest, and z again where the displacement is undone: mostly that is the z that was there. Else z walked at random.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import rounding, update
from .storage import MOMENTS, arithmetic, is_quantized, settle, widened
from .update import Options, Stages, State, number


def needed(param: Tensor, grad: Tensor, state: State, o: Options) -> bool:
    """Whether anything is stored in another dtype than the parameter's, or rounded at random."""
    if o.round_param and param.dtype == torch.bfloat16:
        return True
    stored = (grad, *(state[key] for key in MOMENTS if key in state))
    return any(x.dtype != param.dtype or is_quantized(x) for x in stored)


def draws(param: Tensor, state: State, o: Options, parameter_number: int) -> dict[str, Tensor]:
    """16 random bits per element for each tensor that is rounded at random; "param" is the parameter."""
    stored = {"param": param, **{key: state[key] for key in MOMENTS if key in state}}
    wanted = {key for key in stored if (o.round_param if key == "param" else o.round_state)}
    wanted = {key for key in wanted if stored[key].dtype == torch.bfloat16 and not is_quantized(stored[key])}
    bits: dict[str, Tensor] = {}
    key = rounding.key_of(o.seed, parameter_number, number(state["step"], o))
    for of_key, low, high in ((key, "exp_avg", "exp_avg_grad"), (~key, "param", "exp_avg_sq")):
        if wanted & {low, high}:
            random = rounding.draw(param, of_key)
            bits |= {low: rounding.lower(random), high: rounding.upper(random)}
    return {key: bits[key] for key in wanted}


def step(stages: Stages, param: Tensor, grad: Tensor, state: State, o: Options, parameter_number: int) -> None:
    """One step of one parameter, whatever its gradient and state are stored in."""
    wide_param, wide = widened_both(param, state)
    if stages.undo:
        stages.undo(wide_param, wide, o)
        settle(param, wide_param, None)
    stages.moments(widened(grad, wide_param.dtype), wide, o)
    random = draws(param, state, o, parameter_number)
    for key in MOMENTS:
        if key in state:
            settle(state[key], wide[key], random.get(key))
    h = stages.descent(wide_param, wide, o)
    settle(param, wide_param, random.get("param"))
    if stages.displace:
        stages.displace(wide_param, h, wide, o)
        settle(param, wide_param, None)


def undo_displacement_(param: Tensor, state: State, o: Options) -> None:
    """z = w + d, whatever parameter and state are stored in."""
    wide_param, wide = widened_both(param, state)
    update.undo_displacement_(wide_param, wide, o)
    settle(param, wide_param, None)


def widened_both(param: Tensor, state: State) -> tuple[Tensor, State]:
    """A parameter and its state in the arithmetic's dtype."""
    dtype = arithmetic(param.dtype)
    return widened(param, dtype), {key: widened(x, dtype) if key in MOMENTS else x for key, x in state.items()}
