"""One step of one tensor with narrow storage: widen, update, round. The fused kernels do the same in registers.

The offset is computed from the stored moments, because the undo reads them. z and w are rounded as a parameter of AdamW
is. The undo rounds z to nearest, which mostly gives the z before the displacement; stochastic rounding would add a
random walk. If w was rounded stochastically, the undo draws the same random bits again (subtractive dither).
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import rounding, update
from .storage import MOMENTS, arithmetic, is_quantized, store_rounded_, widened
from .update import Options, Stages, State


def is_needed(param: Tensor, grad: Tensor, state: State, o: Options) -> bool:
    """Return whether gradient or moments lack the parameter's dtype, or the parameter is rounded stochastically.

    bfloat16 parameters under torch.compile count too: compiled code would round only at the end, and z would drift.
    """
    if param.dtype == torch.bfloat16 and (o.round_param or torch.compiler.is_compiling()):
        return True
    stored = (grad, *(state[key] for key in MOMENTS))
    return any(x.dtype != param.dtype or is_quantized(x) for x in stored)


def random_bits(param: Tensor, state: State, o: Options, param_index: int) -> dict[str, Tensor]:
    """Return 16 random bits per element for each tensor to round stochastically. "param" is for z, "w" for w."""
    stored = {"param": param, **{key: state[key] for key in MOMENTS}}
    wanted = {key for key in stored if (o.round_param if key == "param" else o.round_state)}
    wanted = {key for key in wanted if stored[key].dtype == torch.bfloat16 and not is_quantized(stored[key])}
    bits: dict[str, Tensor] = {}
    random_key = rounding.key_of(o.seed, param_index, update.host_scalar(state["step"], o))
    if "exp_avg" in wanted:
        bits["exp_avg"] = rounding.low_bits(rounding.draw(param, random_key))
    if wanted & {"param", "exp_avg_sq"}:
        random = rounding.draw(param, ~random_key)
        bits |= {"param": rounding.low_bits(random), "exp_avg_sq": rounding.high_bits(random)}
    return {key: bits[key] for key in wanted} | ({"w": bits["exp_avg_sq"]} if "param" in wanted else {})


def step_(stages: Stages, param: Tensor, grad: Tensor, state: State, o: Options, param_index: int) -> None:
    """Step one parameter. Its gradient and state may have any dtype."""
    wide_param, wide = widened_both(param, state)
    if stages.undo:
        undo_(param, wide_param, wide, o, param_index)
    update.moments_([widened(grad, wide_param.dtype)], [wide], o)
    random = random_bits(param, state, o, param_index)
    for key in MOMENTS:
        store_rounded_(state[key], wide[key], random.get(key))
    hs = stages.descent([wide_param], [wide], o)
    store_rounded_(param, wide_param, random.get("param"))
    if stages.displace:
        stages.displace([wide_param], hs, [wide], o)
        store_rounded_(param, wide_param, random.get("w"))


def undo_offset_(param: Tensor, state: State, o: Options, param_index: int) -> None:
    """Replace w by z = w + κ u in ``param``. Parameter and state may have any dtype."""
    undo_(param, *widened_both(param, state), o, param_index)


def redo_offset_(param: Tensor, state: State, o: Options, param_index: int) -> None:
    """Replace z by w = z − κ u in ``param``, with the stored κ and the random bits of the last step."""
    wide_param, wide = widened_both(param, state)
    update.apply_offsets_([wide_param], [wide], o, -1)
    store_rounded_(param, wide_param, random_bits_of_w(param, wide, o, param_index))


def undo_(param: Tensor, wide_param: Tensor, wide: State, o: Options, param_index: int) -> None:
    """Compute z = w + κ u in ``wide_param``, and store it in ``param`` rounded to nearest."""
    random = random_bits_of_w(param, wide, o, param_index)
    if random is not None:
        wide_param.copy_(torch.where(wide["reach"] != 0, rounding.center(wide_param, random), wide_param))
    update.undo_([wide_param], [wide], o)
    store_rounded_(param, wide_param, None)


def random_bits_of_w(param: Tensor, state: State, o: Options, param_index: int) -> Tensor | None:
    """Return the 16 random bits per element with which the last step rounded w, or None if it rounded to nearest."""
    if not o.round_param or param.dtype != torch.bfloat16:
        return None
    random_key = rounding.key_of(o.seed, param_index, update.host_scalar(state["step"], o))
    return rounding.high_bits(rounding.draw(param, ~random_key))


def widened_both(param: Tensor, state: State) -> tuple[Tensor, State]:
    """Return a parameter and its state, with parameter and moments in the arithmetic's dtype."""
    dtype = arithmetic(param.dtype)
    return widened(param, dtype), {key: widened(x, dtype) if key in MOMENTS else x for key, x in state.items()}
