"""In which dtype each state tensor is kept: the parameter's own, or by ``state_dtype`` one of fewer or more bits.

* None: every state tensor has its parameter's dtype, as in torch.
* ``torch.bfloat16``: m in bfloat16, rounded at random (:mod:`hatam.rounding`); v in float32. That is 6 bytes of state
  per parameter, where AdamW needs 8.
* ``torch.float32``: everything in float32, for parameters of any dtype.
* ``"8bit"``: m and v as torchao's block-wise quantized tensors; small tensors stay in float32, as there.

float64 parameters keep float64 where this says float32.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from . import rounding

STATE_DTYPES = {"None": None, "torch.float32": torch.float32, "torch.bfloat16": torch.bfloat16, "8bit": "8bit"}
MOMENTS = ("exp_avg", "exp_avg_sq")
SCALARS = ("reach", "rms_ratio", "path_length", "denom_mean", "reach_mean")  # what AdamW's state has not
BLOCK = 256  # elements that share one scale in torchao's 8-bit state
LEAST_SCALE = 2e-12  # of a block; where all is smaller, torchao's is 1e-12, and v may well be 0
LEAST_8BIT = 4096  # elements; what is smaller stays in float32


def arithmetic(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the arithmetic for narrow storage: float32 at least."""
    wide: torch.dtype = torch.promote_types(dtype, torch.float32)
    return wide


def new_moment(param: Tensor, key: str, state_dtype: Any) -> Tensor:
    """Zeros for one of the state tensors of a parameter."""
    dtype = param.dtype if state_dtype is None else arithmetic(param.dtype)
    if not param.is_complex():
        if state_dtype == "8bit" and param.numel() >= LEAST_8BIT and param.numel() % BLOCK == 0:
            return quantized_zeros(param, signed=key != "exp_avg_sq")
        if state_dtype == torch.bfloat16 and key != "exp_avg_sq":
            dtype = torch.bfloat16
    return torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format)


def quantized_zeros(param: Tensor, *, signed: bool) -> Tensor:
    """Zeros as one of torchao's 8-bit tensors."""
    zeros: Tensor = quantized_type().zeros(param.shape, signed=signed, block_size=BLOCK, device=param.device)
    return zeros


@cache
def quantized_type() -> Any:
    """torchao's 8-bit tensor. Registers ``clone`` where torchao lacks it, for loading and deep copies."""
    from torchao.optim.subclass_8bit import OptimState8bit

    clone = torch.ops.aten.clone.default
    if clone not in getattr(OptimState8bit, "_ATEN_OP_TABLE", {}).get(OptimState8bit, {}):

        @OptimState8bit.implements(clone)  # type: ignore[untyped-decorator]
        def _(func: Any, types: Any, args: tuple[Any, ...], kwargs: Any) -> Any:
            x = args[0]
            return OptimState8bit(x.codes.clone(), x.scale.clone(), x.qmap.clone(), x.signed, dtype=x.dtype)

    return OptimState8bit


def is_quantized(x: Tensor) -> bool:
    """Whether a state tensor is one of torchao's, which report the dtype that they dequantize to."""
    return hasattr(x, "qmap")  # which torch.compile can trace, unlike a look at the module of its type


def copied(x: Tensor) -> Tensor:
    """A copy, of torchao's tensors too."""
    if is_quantized(x):
        quantized_type()  # which teaches them to be copied
    return x.clone()


def dequantized(x: Any) -> Tensor:
    """The numbers of one of torchao's tensors. A v of 0 in a block that is not 0 reads as the least code above 0.

    A v below 2e-7 of the largest in its block is stored as 0, while m is not: m / ε would explode.
    """
    wide: Tensor = x.dequantize()
    if not x.signed:
        least = torch.where(x.scale > LEAST_SCALE, x.qmap[1] * x.scale, 0)
        wide = torch.maximum(wide.view(len(least), -1), least[:, None]).view(wide.shape)
    return wide


def widened(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in the arithmetic's dtype: itself, or a copy that :func:`store_rounded_` writes back."""
    if is_quantized(x):
        return dequantized(x).to(dtype)
    return x if x.dtype == dtype else x.to(dtype)


def store_rounded_(stored: Tensor, wide: Tensor, random: Tensor | None) -> None:
    """Store what was widened, at random where bits are given, and leave in ``wide`` what a later step will read."""
    if wide is stored:
        return
    if stored.dtype == torch.bfloat16 and not is_quantized(stored):
        wide.copy_(rounding.rounded(wide.float(), random))
        stored.copy_(wide)
    else:
        stored.copy_(wide)
        wide.copy_(widened(stored, wide.dtype))


def restore_dtypes(state: dict[str, Any], saved: dict[str, Any], param: Tensor, state_dtype: Any) -> None:
    """Put back what loading has cast to the parameter's dtype; a cast to more digits stays, unless fewer were asked."""
    for key in saved.keys() & {*MOMENTS, *SCALARS}:
        # torch has cast it to the parameter's dtype; where that has more digits than what was saved, the cast stays
        narrower = torch.promote_types(saved[key].dtype, param.dtype) != saved[key].dtype
        if key in SCALARS or is_quantized(saved[key]) or not narrower or state_dtype is not None:
            state[key] = copied(saved[key].detach()).to(param.device)
