"""Training with state and parameters in fewer bits: averages, small steps, the displacement, and what 0 means."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import (
    Falling,
    bits,
    cosine,
    feed,
    generator,
    gradients,
    parameters,
    relative_error,
    state_bits,
    twins,
)
from torch.optim import AdamW

from hatam import HATAM

BF16, FLOAT = torch.bfloat16, torch.float32
every_state_dtype = pytest.mark.parametrize("state_dtype", [None, FLOAT, BF16, "8bit"], ids=str)
every_fused = pytest.mark.parametrize("fused", [True, False], ids=["kernel", "unfused"])


@every_fused
def test_a_long_average_in_bfloat16(fused: bool) -> None:
    """m with β1 = 0.99 under a constant gradient: at random its mean tracks float32, to nearest it stops at 0.8.

    A rounding has a standard deviation of half a unit, 2^-9, at most; m remembers 1 / (1 − β1²) = 50 of them.
    """
    found, n, steps = {}, 1024, 500
    for name, dtype, options in (
        ("float32", FLOAT, {}),
        ("at random", FLOAT, {"state_dtype": BF16}),
        ("to nearest", BF16, {}),
    ):
        p = torch.nn.Parameter(torch.zeros(n, dtype=dtype))
        optimizer = HATAM([p], 1e-3, betas=(0.99, 0.999), fused=fused, **options)
        p.grad = torch.ones_like(p)
        for _ in range(steps):
            optimizer.step()
        found[name] = optimizer.state[p]["exp_avg"].double().mean().item()
    assert found["float32"] == pytest.approx(1 - 0.99**steps, rel=1e-4)
    assert found["at random"] == pytest.approx(found["float32"], abs=5 * 2**-9 * (50 / n) ** 0.5)
    assert found["to nearest"] < 0.85


@every_fused
def test_steps_below_half_a_unit(fused: bool) -> None:
    """A bfloat16 parameter at 1 with steps of 1/40 unit: at random it moves as float32 does on average, else never."""
    moved = {}
    for name, dtype, at_random in (("float32", FLOAT, False), ("random", BF16, True), ("nearest", BF16, False)):
        p = torch.nn.Parameter(torch.ones(20_000, dtype=dtype))
        options = {"state_dtype": FLOAT, "bf16_stochastic_round": at_random, "hidden": True, "horizon": 0.5}
        optimizer = Falling([p], 1e-4, weight_decay=0.0, fused=fused, **options)
        p.grad = torch.ones_like(p)
        for _ in range(100):
            optimizer.step()
        moved[name] = 1 - p.detach().double().mean().item()
    assert moved["float32"] == pytest.approx(100 * 1e-4, rel=0.02)
    assert moved["nearest"] == 0
    error = (100 * 1e-4 * 2**-8 / 20_000) ** 0.5  # of 100 roundings with their probabilities
    assert moved["random"] == pytest.approx(moved["float32"], abs=5 * error)


UNDONE: dict[str, tuple[dict[str, Any], int]] = {
    **{
        f"{modulator}-{path}": ({"modulator": modulator, "state_dtype": BF16, "fused": path == "kernel"}, 200)
        for modulator in ("uniform", "relative")
        for path in ("kernel", "unfused")
    },
    "8bit": ({"state_dtype": "8bit"}, 15),
    "8bit-relative": ({"state_dtype": "8bit", "modulator": "relative"}, 15),
}


@pytest.mark.parametrize(("options", "steps"), UNDONE.values(), ids=UNDONE.keys())
def test_the_offset_is_undone_as_it_was_done(options: dict[str, Any], steps: int) -> None:
    """From the state that was stored. At an lr near 0, z stays where it was, to float32's rounding.

    An undo from what was not rounded would leave 2^-9 of the offset, some 2e-5, a step; two roundings of z are 1e-7.
    """
    (p,) = parameters([(64, 64)])
    start = p.detach().clone()
    optimizer = Falling([p], 1e-12, **{"gamma": 0.04, "weight_decay": 0.0, **options})
    rng = generator(1)
    for _ in range(steps):
        p.grad = torch.randn(64, 64, generator=rng)
        optimizer.step()
    w = p.detach().clone()
    assert (w - start).abs().max() > 1e-3
    with optimizer.straightened():
        drift = (p.detach() - start).abs()
        assert drift.max() <= steps**0.5 * 2 * 2**-24 * start.abs().max()
    assert torch.equal(p.detach(), w)


@pytest.mark.parametrize("at_random", [False, True], ids=["nearest", "random"])
@pytest.mark.parametrize("path", [{}, {"fused": False, "foreach": True}, {"fused": False, "foreach": False}], ids=str)
def test_z_hardly_walks_in_bfloat16(path: dict[str, Any], at_random: bool) -> None:
    """At an lr far below a unit AdamW moves nothing. Rounding z − d and then w + d, each of its own, moved 5%."""
    p = torch.nn.Parameter(torch.randn(2000, generator=generator(3)).to(BF16))
    start, rng = p.detach().float(), generator(4)
    norm = float(start.norm())
    optimizer = Falling([p], 1e-7, weight_decay=0, gamma=0.08, hidden=True, bf16_stochastic_round=at_random, **path)
    for _ in range(1000):
        p.grad = torch.randn(2000, generator=rng).to(BF16)
        optimizer.step()
    assert (p.detach().float() - start).norm() > 0.01 * norm
    with optimizer.straightened():
        assert (p.detach().float() - start).norm() < 0.01 * norm


@pytest.mark.parametrize("options", [{}, {"state_dtype": FLOAT}, {"bf16_stochastic_round": True}], ids=str)
def test_z_hardly_walks_where_the_step_is_compiled(options: dict[str, Any]) -> None:
    """The compiler keeps in float32 what is cast to bfloat16 and back; rounding has to survive that, in one graph."""
    torch._dynamo.reset()
    p = torch.nn.Parameter(torch.randn(2000, generator=generator(3)).to(BF16))
    start, rng = p.detach().float(), generator(4)
    norm = float(start.norm())
    optimizer = Falling([p], torch.tensor(1e-7), weight_decay=0, gamma=0.08, hidden=True, **options)
    p.grad = torch.randn(2000, generator=rng).to(BF16)
    optimizer.step()
    step = torch.compile(optimizer.step)
    assert torch._dynamo.explain(optimizer.step)().graph_count == 1
    for _ in range(400):
        p.grad = torch.randn(2000, generator=rng).to(BF16)
        step()
    assert (p.detach().float() - start).norm() > 0.01 * norm
    with optimizer.straightened():
        assert (p.detach().float() - start).norm() < 0.01 * norm


@every_fused
def test_z_does_not_drift_in_bfloat16(fused: bool) -> None:
    """What has no gradient keeps every bit of its z, and what is displaced by some units leaves it as often as not."""
    n = 2**18
    p = torch.nn.Parameter((1.1 + 0.3 * torch.rand(n, generator=generator(3))).to(BF16))
    start, rng = p.detach().clone(), generator(5)
    options = {"hidden": True, "state_dtype": FLOAT, "fused": fused, "bf16_stochastic_round": True}
    optimizer = Falling([p], 1e-12, weight_decay=0.0, gamma=0.01, **options)
    p.grad = torch.zeros_like(p)
    for _ in range(60):
        p.grad[: n // 2] = torch.randn(n // 2, generator=rng)
        optimizer.step()
    assert (p[: n // 2] != start[: n // 2]).float().mean() > 0.1
    with optimizer.straightened():
        assert torch.equal(p[n // 2 :], start[n // 2 :])
        up, down = (p > start).sum().item(), (p < start).sum().item()
    assert up + down < 60 * n / 2 * 2**-15
    assert abs(up - down) <= 5 * (up + down) ** 0.5


@pytest.mark.parametrize("at_random", [False, True], ids=["nearest", "random"])
@every_fused
def test_an_offset_below_half_a_unit(fused: bool, at_random: bool) -> None:
    """At random w is ahead by it on average, and z is found again all the same; to nearest there is none."""
    p = torch.nn.Parameter(torch.full((20_000,), 1.25, dtype=BF16))
    options = {"hidden": True, "fused": fused, "bf16_stochastic_round": at_random, "state_dtype": FLOAT}
    optimizer = Falling([p], 1e-12, weight_decay=0.0, gamma=0.002, **options)
    rng = generator(6)
    for _ in range(300):  # as much up as down in each half, so that the mean of u is known
        half = torch.randn(10_000, generator=rng).abs()
        p.grad = torch.cat([half, -half]).to(BF16) * (-1) ** int(torch.randint(2, (), generator=rng))
        optimizer.step()
    state, unit = optimizer.state[p], 2**-7
    h = (state["exp_avg_sq"] / (1 - 0.95**300)).sqrt() + 1e-8
    expected = (state["reach"] * state["exp_avg"] / h / unit)[:10_000]
    moved = ((1.25 - p.detach().double()) / unit)[:10_000]
    assert 0.01 < expected.abs().mean() < 0.3
    error = 5 * (float(expected.abs().mean()) / 10_000) ** 0.5
    assert moved.mean().item() == pytest.approx(float(expected.mean()) if at_random else 0, abs=error)
    with optimizer.straightened():
        assert (p == 1.25).all()


def test_straightened_gives_back_every_bit() -> None:
    """Of bfloat16 parameters and of what their state is stored in, although z has to be rounded meanwhile."""
    for state_dtype in (None, BF16, FLOAT):
        params = parameters(((64, 64), (9,)), BF16)
        optimizer = Falling(params, 0.05, hidden=True, state_dtype=state_dtype, bf16_stochastic_round=True)
        feed(optimizer, params, gradients(params, 5))
        before = [bits(p) for p in params] + state_bits(optimizer)
        with optimizer.straightened():
            assert [bits(p) for p in params] != before[:2]
        assert [bits(p) for p in params] + state_bits(optimizer) == before


GAMMA_0: dict[str, tuple[torch.dtype, dict[str, Any], float]] = {
    "float32-as-float32": (FLOAT, {"state_dtype": FLOAT}, 1e-6),
    "float32-m-bf16": (FLOAT, {"state_dtype": BF16}, 5e-3),
    "float32-8bit": (FLOAT, {"state_dtype": "8bit"}, 1e-2),
    "bf16-state-float32": (BF16, {"state_dtype": FLOAT}, 5e-2),
    "bf16-random": (BF16, {"bf16_stochastic_round": True}, 2e-2),
    "bf16-state-float32-random": (BF16, {"state_dtype": FLOAT, "bf16_stochastic_round": True}, 2e-2),
    "float64-m-bf16": (torch.float64, {"state_dtype": BF16}, 5e-3),
    "float16-state-float32": (torch.float16, {"state_dtype": FLOAT}, 2e-3),
}


@every_fused
@pytest.mark.parametrize(("dtype", "options", "tolerance"), GAMMA_0.values(), ids=GAMMA_0.keys())
def test_gamma_0_is_adamw(dtype: torch.dtype, options: dict[str, Any], tolerance: float, fused: bool) -> None:
    """In wider arithmetic and without more state: it stays near AdamW in float64, whatever it is stored in."""
    params = parameters(((64, 64), (7,)), dtype)
    others = [torch.nn.Parameter(p.detach().double()) for p in params]
    grads, lrs = gradients(params, 20), cosine(20, 0.01, 3)
    optimizer = HATAM(params, 0.01, gamma=0.0, **options, fused=fused)
    feed(optimizer, params, grads, lrs)
    feed(AdamW(others, 0.01, (0.9, 0.95)), others, [[g.double() for g in row] for row in grads], lrs)
    assert all(state.keys() == {"step", "exp_avg", "exp_avg_sq"} for state in optimizer.state.values())
    assert all(relative_error(p, q) <= tolerance for p, q in zip(params, others, strict=True))


@pytest.mark.parametrize("modulator", ["uniform", "relative"])
def test_a_v_that_8_bits_cannot_hold(modulator: str) -> None:
    """Gradients from 1 to 1e-6 in one block: v of the small ones is stored as 0, which must not blow them up."""
    (p,) = parameters([(64, 64)])
    (other,) = twins([p])
    scale = torch.logspace(0, -6, 64).expand(64, 64)
    grads = [[scale * g for g in row] for row in gradients([p], 12)]
    optimizer = Falling([p], 0.01, state_dtype="8bit", modulator=modulator)
    feed(optimizer, [p], grads[:1])
    assert (optimizer.state[p]["exp_avg_sq"].dequantize() == 0).any()
    feed(optimizer, [p], grads[1:])
    feed(Falling([other], 0.01, modulator=modulator), [other], grads)
    assert (p - other).abs().max() <= 0.5  # neither has gone further than some steps of lr and some reach
    with optimizer.straightened():
        assert (p - other).abs().max() <= 0.5


@every_state_dtype
@every_fused
def test_zero_gradients_at_the_start(state_dtype: Any, fused: bool) -> None:
    """A mean of ε measures no sharpness in few bits either."""
    p = torch.nn.Parameter(torch.ones(64, 64, dtype=BF16))
    optimizer = Falling([p], 0.01, state_dtype=state_dtype, fused=fused, modulator="relative")
    for gradient in (0.0, 0.0, 1.0, 1.0):
        p.grad = torch.full_like(p, gradient)
        optimizer.step()
    assert torch.all((p.detach().float() - 1).abs() < 0.1)


@pytest.mark.parametrize("path", [{}, {"foreach": False}, {"foreach": True}], ids=str)
@pytest.mark.parametrize("eps", [0.0, 1e-8])
def test_a_denominator_of_nothing(path: dict[str, Any], eps: float) -> None:
    """Common ε are 0 in float16, and before the first gradient so is v."""
    params = [torch.nn.Parameter(torch.ones(4, dtype=torch.float16))]
    optimizer = Falling(params, 0.01, hidden=True, eps=eps, **path)
    feed(optimizer, params, [[torch.full((4,), x, dtype=torch.float16)] for x in (1.0, -2.0, 0.5)])
    assert params[0].isfinite().all()
    assert not torch.equal(params[0], torch.ones_like(params[0]))


def test_float16_keeps_what_a_loss_scale_saves() -> None:
    """A gradient below its range without the scale is not lost in a moment of float32."""
    params = [torch.nn.Parameter(torch.ones(4, dtype=torch.float16))]
    optimizer = HATAM(params, 0.01, state_dtype=torch.float32, fused=True)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(65536.0), torch.tensor(0.0)
    feed(optimizer, params, [[torch.full((4,), 3e-3, dtype=torch.float16)]])
    torch.testing.assert_close(
        optimizer.state[params[0]]["exp_avg"], torch.full((4,), 0.1 * 3e-3 / 65536), rtol=1e-3, atol=0
    )
