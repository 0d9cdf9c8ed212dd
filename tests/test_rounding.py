"""Stochastic rounding: its random numbers, its mean, and that the kernel draws the very same bits."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import Falling, bits, feed, generator, kernel_calls, parameters
from torch import Tensor

from hatam import rounding

BF16 = torch.bfloat16
MANY = 100_000


def drawn(seed: int = 0, number: int = 0, step: int = 1, n: int = MANY, *, second: bool = False) -> Tensor:
    """The random int32 of n elements, of the first or the second key."""
    key = rounding.key_of(seed, number, step)
    return rounding.draw(torch.empty(n), ~key if second else key)


# Random numbers -----------------------------------------------------------------------------------------------------


def test_scatter_of_ints_and_of_tensors() -> None:
    """The same permutation, in Python's integers and in int32 that wrap around."""
    edges = [0, 1, 2, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
    numbers = edges + torch.randint(0, 2**32, (5000,), generator=generator()).tolist()
    x = torch.tensor([rounding.as_int32(n) for n in numbers], dtype=torch.int32)
    assert rounding.scatter_(x.clone()).tolist() == [rounding.as_int32(rounding.scatter(n)) for n in numbers]
    assert rounding.scatter_(torch.arange(1 << 20, dtype=torch.int32)).unique().numel() == 1 << 20


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
@pytest.mark.parametrize("number", [0, 1, 12345])
def test_key_on_the_host_and_on_a_device(seed: int, number: int) -> None:
    """A step that is a tensor gives the key of that number."""
    for step in (1, 2, 1000, 2**24 - 1):
        on_device = rounding.key_of(seed, number, torch.tensor(float(step)))
        assert on_device.item() == rounding.key_of(seed, number, step)
        assert torch.equal(rounding.draw(torch.empty(5), on_device), drawn(seed, number, step, 5))


def test_elements_are_counted_in_memory() -> None:
    """So that a kernel, which walks memory, draws the same for a transposed tensor."""
    key = rounding.key_of(3, 1, 4)
    plain = rounding.draw(torch.empty(6, 4), key)
    turned = rounding.draw(torch.empty(6, 4).t(), key)
    assert torch.equal(turned.t(), plain)


COUNTERS = {
    "seed": lambda i: {"seed": i},
    "number": lambda i: {"number": i},
    "step": lambda i: {"step": i + 1},
}


@pytest.mark.parametrize("counter", COUNTERS.values(), ids=COUNTERS.keys())
def test_uniform_over_whatever_counts(counter: Any) -> None:
    """One element's 16 bits, over many seeds, parameters or steps, have the mean and variance of uniform numbers."""
    xs = torch.stack([drawn(**counter(i), n=3)[2] for i in range(4000)])
    for half in (rounding.low_bits(xs), rounding.high_bits(xs)):
        u = half.double() / 65536
        assert abs(u.mean() - 0.5) <= 5 * (1 / 12 / u.numel()) ** 0.5
        assert abs(u.var() - 1 / 12) <= 5 * (1 / 180 / u.numel()) ** 0.5


PAIRS = {
    "m-and-e": (rounding.low_bits(drawn()), rounding.high_bits(drawn())),
    "m-and-param": (rounding.low_bits(drawn()), rounding.low_bits(drawn(second=True))),
    "param-and-v": (rounding.low_bits(drawn(second=True)), rounding.high_bits(drawn(second=True))),
    "e-and-v": (rounding.high_bits(drawn()), rounding.high_bits(drawn(second=True))),
    "steps": (rounding.low_bits(drawn(step=1)), rounding.low_bits(drawn(step=2))),
    "parameters": (rounding.low_bits(drawn(number=0)), rounding.low_bits(drawn(number=1))),
    "seeds": (rounding.low_bits(drawn(seed=0)), rounding.low_bits(drawn(seed=1))),
    "step-and-parameter": (rounding.low_bits(drawn(step=2, number=1)), rounding.low_bits(drawn(step=1, number=2))),
    "neighbours": (rounding.low_bits(drawn())[1:], rounding.low_bits(drawn())[:-1]),
    "rows-of-256": (rounding.low_bits(drawn())[256:], rounding.low_bits(drawn())[:-256]),
}


@pytest.mark.parametrize(("x", "y"), PAIRS.values(), ids=PAIRS.keys())
def test_independent(x: Tensor, y: Tensor) -> None:
    """No correlation beyond five standard errors, of the numbers or of their highest bits."""
    for cut in (0, 15):
        correlation = torch.corrcoef(torch.stack([(x >> cut).double(), (y >> cut).double()]))[0, 1]
        assert abs(correlation) <= 5 / x.numel() ** 0.5


# Rounding -----------------------------------------------------------------------------------------------------------

NUMBERS = [
    0.1,
    -0.1,
    1 + 2**-10,
    -1 - 2**-9 - 2**-20,
    3.14159,
    65504.1,
    -1e-30,
    3e-39,
    1.1e30,
    1 - 2**-12,
    2**-130 * 1.001,
]


@pytest.mark.parametrize("number", NUMBERS, ids=str)
def test_the_mean_of_many_roundings_is_the_number(number: float) -> None:
    """Within five standard errors; and only its two neighbours occur."""
    x = torch.full((MANY,), number)
    rounded = rounding.round_at_random(x, rounding.low_bits(drawn(seed=11)))
    assert rounded.dtype == BF16
    word = x[:1].view(torch.int32).bitwise_and(rounding.UPPER_HALF)
    below, above = (w.view(torch.float32).double().item() for w in (word, word + 0x10000))  # by magnitude
    exact = x[0].double().item()
    share = (exact - below) / (above - below)
    assert 0 < share < 1
    assert set(rounded.double().unique().tolist()) == {below, above}
    error = abs(above - below) * (share * (1 - share) / MANY) ** 0.5
    assert abs(rounded.double().mean().item() - exact) <= 5 * error


def test_what_bfloat16_can_hold_is_not_rounded() -> None:
    """Every one of its numbers, infinities and zeros of either sign included; NaN stays NaN."""
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(BF16)
    for step in (1, 2, 3):
        rounded = rounding.round_at_random(every.float(), rounding.low_bits(drawn(step=step, n=every.numel())))
        assert torch.equal(rounded.isnan(), every.isnan())
        kept = ~every.isnan()
        assert torch.equal(rounded.view(torch.int16)[kept], every.view(torch.int16)[kept])
    odd_nans = torch.tensor([0x7F800001, 0x7FFFFFFF, -0x7FFFFF, -1], dtype=torch.int32).view(torch.float32)
    assert rounding.round_at_random(odd_nans, torch.full((4,), 0xFFFF, dtype=torch.int32)).isnan().all()


def test_the_middle_of_what_is_rounded_to_a_number() -> None:
    """Half a unit at most from whatever is rounded there with the same bits; 0, infinity and NaN are their own."""
    x = torch.randn(MANY, generator=generator(5)) * torch.logspace(-30, 30, MANY)
    random = rounding.low_bits(drawn(seed=7))
    rounded = rounding.round_at_random(x, random).float()
    unit = torch.ldexp(torch.ones(MANY), torch.frexp(rounded).exponent - 8)
    middle = rounding.center(rounded, random)
    assert (middle - x).abs().le(unit / 2).all()
    assert torch.equal(rounding.round_at_random(middle, random).float(), rounded)
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan])
    assert bits(rounding.center(special, random[:5])) == bits(special)


# The kernel ---------------------------------------------------------------------------------------------------------

SPECIAL = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, 1e-40, 1.0, -2.0])


def start(dtype: torch.dtype, transposed: bool) -> list[torch.nn.Parameter]:
    """Parameters over several blocks and chunks."""
    shapes = [(37,), (300, 260) if dtype == BF16 else (30, 40), (1025,)]
    params = parameters(shapes, dtype)
    return [torch.nn.Parameter(p.detach().t()) if transposed else p for p in params]


@pytest.mark.parametrize("fused", [True, False], ids=["kernel", "unfused"])
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("seed", [0, 12345, 2**32 - 1])
def test_bits_of_m(seed: int, transposed: bool, fused: bool) -> None:
    """With a rate of 0 it is the gradient, without any arithmetic: what is left is the rounding, bit for bit."""
    params = start(torch.float32, transposed)
    options = {"betas": (0.0, 0.0), "hidden": True, "state_dtype": BF16, "seed": seed}
    optimizer = Falling(params, 1e-9, fused=fused, **options)
    rng = generator(2)
    with kernel_calls() as calls:
        for step in (1, 2, 3):
            grads = [torch.empty_like(p).normal_(generator=rng) for p in params]
            grads[0][:7] = SPECIAL
            for state in optimizer.state.values():
                state["exp_avg"].zero_()
            feed(optimizer, params, [grads])
            for number, (p, g) in enumerate(zip(params, grads, strict=True)):
                random = rounding.low_bits(rounding.draw(p, rounding.key_of(seed, number, step)))
                finite, stored = g.isfinite(), optimizer.state[p]["exp_avg"]
                assert bits(stored[finite]) == bits(rounding.round_at_random(g, random)[finite])
                if fused:  # infinity and NaN stay what they are
                    torch.testing.assert_close(stored[~finite].float(), g[~finite], equal_nan=True)
    assert calls == ([3] * 3 if fused else [])


@pytest.mark.parametrize("fused", [True, False], ids=["kernel", "unfused"])
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("seed", [0, 12345, 2**32 - 1])
def test_bits_of_v(seed: int, transposed: bool, fused: bool) -> None:
    """With a rate of 0 it is g², which float32 holds exactly."""
    params = start(BF16, transposed)
    options = {"betas": (0.0, 0.0), "bf16_stochastic_round": True, "seed": seed, "hidden": True}
    optimizer = Falling(params, 0.0, fused=fused, **options)
    rng = generator(2)
    for step in (1, 2):
        grads = [torch.empty_like(p).normal_(generator=rng) for p in params]
        feed(optimizer, params, [grads])
        for number, (p, g) in enumerate(zip(params, grads, strict=True)):
            random = rounding.draw(p, ~rounding.key_of(seed, number, step))
            expected = rounding.round_at_random(g.float() ** 2, rounding.high_bits(random))
            assert bits(optimizer.state[p]["exp_avg_sq"]) == bits(expected)


@pytest.mark.parametrize("state_dtype", [None, torch.float32], ids=str)
@pytest.mark.parametrize("fused", [True, False], ids=["kernel", "unfused"])
@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
def test_bits_of_the_parameters(transposed: bool, fused: bool, state_dtype: Any) -> None:
    """Without gradients weight decay alone is left: one product, then the rounding."""
    params = start(BF16, transposed)
    options = {"hidden": True, "state_dtype": state_dtype, "bf16_stochastic_round": True, "seed": 99}
    optimizer = Falling(params, 0.01, weight_decay=0.3, fused=fused, **options)
    with kernel_calls() as calls:
        for step in (1, 2, 3):
            before = [p.detach().clone(memory_format=torch.preserve_format) for p in params]
            feed(optimizer, params, [[torch.zeros_like(p) for p in params]])
            for number, (p, old) in enumerate(zip(params, before, strict=True)):
                random = rounding.draw(p, ~rounding.key_of(99, number, step))
                expected = rounding.round_at_random(old.float() * (1 - 0.01 * 0.3), rounding.low_bits(random))
                assert bits(p) == bits(expected)
    assert calls == ([3] * 3 if fused else [])
