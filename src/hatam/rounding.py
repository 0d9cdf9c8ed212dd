"""Seeded stochastic rounding to bfloat16. The cut-off fraction is the probability of rounding up.

The expectation of a rounding is the number itself, so that small changes are not lost. Rounding to nearest drops every
change below 1/512 of a number; a moving average with a decay rate of 0.999 then stands still. The random numbers depend
on (seed, index of the parameter, step, element) and nothing else. So a run has the same bits when it is repeated,
resumed from a checkpoint or done on another code path, and all replicas of a model round alike.

All integers have 32 bits. ``scatter`` is "lowbias32", a hash function found by C. Wellons' hash prospector.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
UPPER_HALF = -0x10000  # 0xFFFF0000 as int32
MULTIPLIERS = (0x7FEB352D, 0x846CA68B)

Key: TypeAlias = Any  # an int, or a 0-dim int32 tensor if ``step`` is a tensor


def scatter(x: int) -> int:
    """Return the hash of a 32-bit integer. The hash function is a permutation."""
    x = ((x ^ x >> 16) * MULTIPLIERS[0]) & MASK
    x = ((x ^ x >> 15) * MULTIPLIERS[1]) & MASK
    return x ^ x >> 16


def scatter_(x: Tensor) -> Tensor:
    """Apply :func:`scatter` to an int32 tensor in place, and return it."""
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(as_int32(MULTIPLIERS[0]))
    x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).mul_(as_int32(MULTIPLIERS[1]))
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


def as_int32(x: int) -> int:
    """Return the int32 with the same bits as an unsigned 32-bit integer."""
    return (x + 0x80000000 & MASK) - 0x80000000


def key_of(seed: int, param_index: int, step: Any) -> Key:
    """Return the random key of one parameter at one step."""
    start = scatter(scatter(seed) + param_index & MASK)
    if isinstance(step, Tensor):
        return scatter_(step.to(torch.int32).add(as_int32(start)))
    return as_int32(scatter(start + int(step) & MASK))


def draw(like: Tensor, key: Key) -> Tensor:
    """Return a random int32 for every element. If ``like`` is dense, it depends on the element's offset in memory."""
    offsets = torch.arange(like.numel(), dtype=torch.int32, device=like.device)
    return scatter_(offsets.bitwise_xor_(key)).as_strided(like.shape, torch.empty_like(like).stride())


def low_bits(random: Tensor) -> Tensor:
    """Return the lower 16 bits of the integers of :func:`draw`."""
    return random & 0xFFFF


def high_bits(random: Tensor) -> Tensor:
    """Return the upper 16 bits of the integers of :func:`draw`."""
    return (random >> 16).bitwise_and_(0xFFFF)


def rounded(x: Tensor, random: Tensor | None) -> Tensor:
    """Return float32 numbers rounded to bfloat16's: stochastically with 16 random bits each, else to nearest.

    Numbers that are not finite stay. The code works on bits, because torch.compile removes a cast to bfloat16 and back.
    """
    bits = x.view(torch.int32)
    addend = (bits >> 16).bitwise_and_(1).add_(0x7FFF) if random is None else random
    return torch.where(x.isfinite(), bits.add(addend).bitwise_and_(UPPER_HALF).view(torch.float32), x)


def round_at_random(x: Tensor, random: Tensor) -> Tensor:
    """Return float32 numbers rounded stochastically to bfloat16, with 16 random bits each."""
    return rounded(x, random).to(torch.bfloat16)


def center(x: Tensor, random: Tensor) -> Tensor:
    """Return the middle of the interval of float32 numbers that :func:`round_at_random` rounds to x with these bits.

    The interval is as long as the spacing of bfloat16, so that z − κ u is in it for one bfloat16 z only. It has an even
    number of elements and so two middle ones. A random bit selects one of them; a fixed choice makes z drift outward.
    """
    center = x.view(torch.int32).sub(random).add_(random & 1).add_(0x7FFF).view(torch.float32)
    return torch.where(x.isfinite() & (x != 0), center, x)
