"""Seeded stochastic rounding to bfloat16: up with the probability of the part that is cut off.

The mean of many roundings is the number itself, so that small changes are not lost: rounding to nearest drops every
change below 1/512 of a number, and an average with a rate of 0.999 then stands still. The random numbers are a function
of (seed, number of the parameter, step, place in the tensor) and nothing else. A run can so be repeated, resumed from a
checkpoint or done on another code path with the same bits, and replicas of a model round alike.

All numbers have 32 bits. ``scatter`` is "lowbias32", found by C. Wellons' hash prospector.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
UPPER_HALF = -0x10000  # 0xFFFF0000 as int32
MULTIPLIERS = (0x7FEB352D, 0x846CA68B)

Key: TypeAlias = Any  # an int, or a 0-dim int32 tensor where the step is on a device


def scatter(x: int) -> int:
    """A permutation of the 32-bit numbers that leaves no pattern."""
    x = ((x ^ x >> 16) * MULTIPLIERS[0]) & MASK
    x = ((x ^ x >> 15) * MULTIPLIERS[1]) & MASK
    return x ^ x >> 16


def scatter_(x: Tensor) -> Tensor:
    """:func:`scatter` of int32 numbers, in place."""
    x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF)).mul_(signed(MULTIPLIERS[0]))
    x.bitwise_xor_((x >> 15).bitwise_and_(0x1FFFF)).mul_(signed(MULTIPLIERS[1]))
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))


def signed(x: int) -> int:
    """The int32 of the same bits."""
    return (x + 0x80000000 & MASK) - 0x80000000


def key_of(seed: int, param_index: int, step: Any) -> Key:
    """The key of parameter ``param_index`` at one step."""
    start = scatter(scatter(seed) + param_index & MASK)
    if isinstance(step, Tensor):
        return scatter_(step.to(torch.int32).add(signed(start)))
    return signed(scatter(start + int(step) & MASK))


def draw(like: Tensor, key: Key) -> Tensor:
    """A random int32 for every element, by its place in memory where ``like`` is dense there."""
    place = torch.arange(like.numel(), dtype=torch.int32, device=like.device)
    return scatter_(place.bitwise_xor_(key)).as_strided(like.shape, torch.empty_like(like).stride())


def lower(random: Tensor) -> Tensor:
    """16 of the bits of :func:`draw`."""
    return random & 0xFFFF


def upper(random: Tensor) -> Tensor:
    """The other 16."""
    return (random >> 16).bitwise_and_(0xFFFF)


def rounded(x: Tensor, random: Tensor | None) -> Tensor:
    """A float32 as bfloat16 has it: at random with 16 bits, else the nearest. What is not finite stays as it is.

    By its bits, for torch.compile leaves a cast to bfloat16 and back out.
    """
    bits = x.view(torch.int32)
    more = (bits >> 16).bitwise_and_(1).add_(0x7FFF) if random is None else random
    return torch.where(x.isfinite(), bits.add(more).bitwise_and_(UPPER_HALF).view(torch.float32), x)


def round_at_random(x: Tensor, random: Tensor) -> Tensor:
    """float32 → bfloat16 with 16 random bits."""
    return rounded(x, random).to(torch.bfloat16)


def middle(x: Tensor, random: Tensor) -> Tensor:
    """The middle of the float32 numbers that :func:`round_at_random` rounds to x with these bits.

    They lie as far apart as two neighbours in bfloat16, so that only one of those, less a displacement, is among them.
    Two are in the middle, and each is taken in half of all cases: else z drifted outward.
    """
    found = x.view(torch.int32).sub(random).add_(random & 1).add_(0x7FFF).view(torch.float32)
    return torch.where(x.isfinite() & (x != 0), found, x)
