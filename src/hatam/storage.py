"""The dtype of each state tensor: the parameter's own, or another one by ``state_dtype``.

* None: every state tensor has its parameter's dtype, as in torch.
* ``torch.bfloat16``: m in bfloat16 with stochastic rounding (:mod:`hatam.rounding`), v in float32. The state takes
  6 bytes per parameter; AdamW's takes 8.
* ``torch.float32``: m and v in float32, for parameters of any dtype.
* ``"8bit"``: m and v as torchao's block-wise quantized tensors. Small tensors stay in float32, as in torchao.

For float64 parameters, read float64 for float32.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import rounding

STATE_DTYPES = {"None": None, "torch.float32": torch.float32, "torch.bfloat16": torch.bfloat16, "8bit": "8bit"}
MOMENTS = ("exp_avg", "exp_avg_sq")
REACH_STATE = (
    "reach",
    "rms_ratio",
    "path_length",
    "denom_mean",
    "reach_mean",
)  # entries that AdamW's state does not have
BLOCK = 256  # elements that share one scale in torchao's 8-bit state
LEAST_SCALE = 2e-12  # torchao's scale is at least 1e-12; in a block of a lower scale than this, v may be 0
LEAST_8BIT = 4096  # elements; smaller tensors stay in float32


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the arithmetic for narrow storage: at least float32."""
    wide: torch.dtype = torch.promote_types(dtype, torch.float32)
    return wide


def new_moment(param: Tensor, key: str, state_dtype: Any) -> Tensor:
    """Return zeros for one moment of a parameter, in its storage dtype."""
    dtype = param.dtype if state_dtype is None else arithmetic(param.dtype)
    if not param.is_complex():
        if state_dtype == "8bit" and param.numel() >= LEAST_8BIT and param.numel() % BLOCK == 0:
            return quantized_zeros(param, signed=key != "exp_avg_sq")
        if state_dtype == torch.bfloat16 and key != "exp_avg_sq":
            dtype = torch.bfloat16
    return torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)


def quantized_zeros(param: Tensor, *, signed: bool) -> Tensor:
    """Return zeros as one of torchao's 8-bit tensors."""
    zeros: Tensor = quantized_type().zeros(param.shape, signed=signed, block_size=BLOCK, device=param.device)
    return zeros


@cache
def quantized_type() -> Any:
    """Return torchao's class of 8-bit tensors, with ``clone`` registered, which loading and deep copies need."""
    from torchao.optim.subclass_8bit import OptimState8bit

    clone = torch.ops.aten.clone.default
    if clone not in getattr(OptimState8bit, "_ATEN_OP_TABLE", {}).get(OptimState8bit, {}):

        @OptimState8bit.implements(clone)  # type: ignore[untyped-decorator]
        def _(func: Any, types: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
            x = args[0]
            return OptimState8bit(x.codes.clone(), x.scale.clone(), x.qmap.clone(), x.signed, dtype=x.dtype)

    return OptimState8bit


def is_quantized(x: Tensor) -> bool:
    """Return whether a tensor is one of torchao's. Its ``dtype`` cannot tell: it is that of the dequantized tensor."""
    return hasattr(x, "qmap")  # torch.compile can trace this, but not a look at the module of the type


def copied(x: Tensor) -> Tensor:
    """Return a copy of a tensor, which may be one of torchao's."""
    if is_quantized(x):
        quantized_type()  # registers clone
    return x.clone()


def dequantized(x: Any) -> Tensor:
    """Return the values of one of torchao's tensors. In a nonzero block, a v of 0 reads as the least positive code.

    torchao stores v as 0 if it is below 2e-7 of the largest v in its block. Its m is not 0 then: m / ε would explode.
    """
    wide: Tensor = x.dequantize()
    if not x.signed:
        least = torch.where(x.scale > LEAST_SCALE, x.qmap[1] * x.scale, 0)
        wide = torch.maximum(wide.view(len(least), -1), least[:, None]).view(wide.shape)
    return wide


def widened(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a tensor in the arithmetic's dtype: itself, or a copy for :func:`store_rounded_` to write back."""
    if is_quantized(x):
        return dequantized(x).to(dtype)
    return x if x.dtype == dtype else x.to(dtype)


def store_rounded_(stored: Tensor, wide: Tensor, random: Tensor | None) -> None:
    """Round ``wide`` into ``stored``, stochastically if ``random`` is given, and set ``wide`` to the stored values."""
    if wide is stored:
        return
    if stored.dtype == torch.bfloat16 and not is_quantized(stored):
        wide.copy_(rounding.rounded(wide.float(), random))
        stored.copy_(wide)
    else:
        stored.copy_(wide)
        wide.copy_(widened(stored, wide.dtype))


def restore_dtypes(state: dict[str, Any], saved: dict[str, Any], param: Tensor, state_dtype: Any) -> None:
    """Undo the casts of state to the parameter's dtype that torch's loading has made.

    A plain moment stays cast if its saved dtype is narrower than the parameter's and ``state_dtype`` is None.
    """
    for key in saved.keys() & {*MOMENTS, *REACH_STATE}:
        narrower = torch.promote_types(saved[key].dtype, param.dtype) != saved[key].dtype
        if key in REACH_STATE or is_quantized(saved[key]) or not narrower or state_dtype is not None:
            state[key] = copied(saved[key].detach()).to(param.device)
