"""What the method becomes at the ends of its options: AdamW; what it keeps; and what the reach is, by its formula."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from conftest import (
    Falling,
    Reaching,
    cosine,
    equal,
    every_path,
    every_variant,
    feed,
    generator,
    gradients,
    parameters,
    relative_error,
    twins,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim import AdamW

from hatam import HATAM, reach
from hatam.storage import REACH_STATE

ADAMW_KEYS = {"step", "exp_avg", "exp_avg_sq"}
UNIFORM_KEYS = ADAMW_KEYS | {"reach", "rms_ratio", "path_length"}
every_way = pytest.mark.parametrize("path", [{}, {"foreach": True}, {"foreach": False}], ids=str)
COMMON = {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}


# AdamW --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        pytest.param({"foreach": False}, id="single"),
        pytest.param({"foreach": True}, id="foreach"),
        pytest.param({"fused": True}, id="fused"),
        pytest.param({}, id="default"),
        pytest.param({"lr": torch.tensor(0.01)}, id="tensor-lr"),
        pytest.param({"lr": torch.tensor([0.01])}, id="1-dim-tensor-lr"),
        pytest.param({"maximize": True}, id="maximize"),
        pytest.param({"maximize": True, "foreach": True}, id="maximize-foreach"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str)
@pytest.mark.parametrize("gamma", [0.0, 0.2], ids=["gamma-0", "before-lr-falls"])
def test_it_is_adamw_bit_for_bit(gamma: float, dtype: torch.dtype, path: dict[str, Any]) -> None:
    """Without a reach under a schedule, and with one until lr falls. Parameters and state; and no state beyond it."""
    path = {"lr": 0.01, **COMMON, **path}
    if gamma and isinstance(path["lr"], Tensor):
        pytest.skip("on a device nobody reads lr to see whether it has fallen; see test_a_tensor_lr_at_its_peak")
    if dtype == torch.complex64 and path.get("fused"):
        path["fused"] = None  # torch's AdamW has no fused step of complex tensors
    ours, theirs = ({**path, "lr": copy.deepcopy(path["lr"])} for _ in range(2))
    params = parameters(dtype=dtype)
    others = twins(params)
    grads = gradients(params, 12)
    lrs = cosine(12, 0.01, 3) if gamma == 0 else [0.01 * min(1.0, (i + 1) / 6) for i in range(12)]
    optimizer = HATAM(params, gamma=gamma, **ours)
    feed(optimizer, params, grads, lrs)
    adamw = AdamW(others, **theirs)
    feed(adamw, others, grads, lrs)
    assert equal(params, others)
    for param, other in zip(params, others, strict=True):
        assert optimizer.state[param].keys() == (UNIFORM_KEYS if gamma and param.dim() >= 2 else ADAMW_KEYS)
        for key in ADAMW_KEYS:
            assert torch.equal(optimizer.state[param][key], adamw.state[other][key])
    with optimizer.straightened():
        assert equal(params, others)


def test_a_tensor_lr_at_its_peak() -> None:
    """The steps are AdamW's up to rounding, and nothing is ahead."""
    params = parameters(dtype=torch.float64)
    others = twins(params)
    optimizer, adamw = HATAM(params, torch.tensor(0.01, dtype=torch.float64)), AdamW(others, 0.01, betas=(0.9, 0.95))
    feed(optimizer, params, gradients(params, 10))
    feed(adamw, others, gradients(params, 10))
    assert all(relative_error(p, q) <= 1e-13 for p, q in zip(params, others, strict=True))
    assert all(state.get("reach", 0) == 0 for state in optimizer.state.values())


@every_path
@every_variant
def test_z_takes_adamws_steps(options: dict[str, Any], foreach: bool) -> None:
    """The gradient is taken elsewhere; what is done with it is AdamW, to the last bit in the moments."""
    params = parameters()
    others = twins(params)
    grads, lrs = gradients(params, 30), cosine(30, 0.01, 5)
    optimizer, adamw = (
        HATAM(params, 0.01, **options, foreach=foreach),
        AdamW(others, 0.01, (0.9, 0.95), foreach=foreach),
    )
    apart = 0.0
    for row, lr in zip(grads, lrs, strict=True):
        feed(optimizer, params, [row], [lr])
        feed(adamw, others, [row], [lr])
        apart = max(apart, *(relative_error(p, q) for p, q in zip(params, others, strict=True)))
        with optimizer.straightened():
            assert all(relative_error(p, q) <= 2e-6 for p, q in zip(params, others, strict=True))
    for param, other in zip(params, others, strict=True):
        assert all(torch.equal(optimizer.state[param][key], adamw.state[other][key]) for key in ADAMW_KEYS)
    assert 0.05 < apart < 1, "w is ahead of z by a share of the weights"


@every_path
@every_variant
def test_gamma_raised_from_0_and_lowered_to_it(options: dict[str, Any], foreach: bool) -> None:
    """The missing state is made from AdamW's; the first step without a reach brings w back to z."""
    params = parameters(dtype=torch.float64)
    others = twins(params)
    grads = gradients(params, 40)
    optimizer = Falling(params, 0.01, **{**options, "gamma": 0.0}, foreach=foreach)
    adamw = AdamW(others, 0.01, (0.9, 0.95), foreach=foreach)
    for gamma, some, ahead in ((0.0, grads[:10], False), (0.5, grads[10:25], True), (0.0, grads[25:], False)):
        optimizer.param_groups[0]["gamma"] = gamma
        feed(optimizer, params, some)
        feed(adamw, others, some)
        assert all((relative_error(p, q) > 1e-3) == ahead for p, q in zip(params, others, strict=True))
        with optimizer.straightened():
            assert all(relative_error(p, q) <= 1e-12 for p, q in zip(params, others, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_undoing_and_redoing_does_not_drift(dtype: torch.dtype) -> None:
    r"""With prescribed gradients z is AdamW's w, up to roundings of size u·max|w|, u the unit roundoff.

    A step rounds z twice more than AdamW's, when the offset is undone and done again (it is the same both times, from
    the same state), and twice in either run for decay and descent, of values that are no longer the same: at most
    6 T u max|w| after T steps. They have no preferred sign: as a random walk of 6 T of them, of standard deviation
    u max|w| / √3 at most, they reach √(2T) u max|w|.
    """
    steps = 2000
    params = parameters([(64,)], dtype)
    others = twins(params)
    optimizer = Falling(params, 3e-3, foreach=False, hidden=True, horizon=math.inf)
    adamw = AdamW(others, 3e-3, (0.9, 0.95), foreach=False)
    rng = generator(1)
    scale = torch.randn(64, generator=rng).exp()
    largest = 0.0
    for t in range(1, steps + 1):
        grad = (scale * torch.randn(64, generator=rng)).to(dtype)
        for p, o in ((params[0], optimizer), (others[0], adamw)):
            p.grad = grad
            o.step()
        if t in (1, 10, 100, 1000, steps):
            largest = max(largest, params[0].abs().max().item(), others[0].abs().max().item())
            bound = math.sqrt(2 * t) * torch.finfo(dtype).eps / 2 * largest
            with optimizer.straightened():
                drift = (params[0].double() - others[0].double()).abs().max().item()
            assert drift <= bound


# The reach ----------------------------------------------------------------------------------------------------------


@every_variant
def test_the_offset_by_its_formula(options: dict[str, Any]) -> None:
    """γ times what lr leaves, as a share of the weights, where gradients are noise."""
    params = parameters([(50, 40)], torch.float64)
    optimizer = HATAM(params, 0.01, **{**options, "gamma": 0.1})
    rng = generator(2)
    grads = [[torch.randn(50, 40, generator=rng, dtype=torch.float64)] for _ in range(200)]
    feed(optimizer, params, grads, [0.01] * 50 + [0.005] * 150)
    w = params[0].detach().clone()
    with optimizer.straightened():
        z = params[0].detach().clone()
    share = float((w - z).norm() / z.norm())
    assert share == pytest.approx(0.1 * 0.5**2, rel=0.1)


def test_a_schedule_that_ends_at_0_ends_at_z() -> None:
    """Bit for bit: nobody needs to switch. Half way, w is elsewhere."""
    params = parameters()
    optimizer = HATAM(params, 0.01, gamma=0.5, travel=0.0, horizon=math.inf)
    grads, lrs = gradients(params, 30), cosine(30, 0.01, 5)
    for last, steps in ((False, slice(20)), (True, slice(20, 30))):
        feed(optimizer, params, grads[steps], lrs[steps])
        w = twins(params)
        with optimizer.straightened():
            assert equal(params, w) == last


@given(lr=st.floats(0.0, 1.0), fade=st.floats(0.01, 1.0))
def test_what_lr_leaves(lr: float, fade: float) -> None:
    """Nothing at the peak, at 0 and before any lr was above 0; the same from tensors."""
    assert reach.lr_factor(1.0, 1.0, fade) == reach.lr_factor(0.0, 1.0, fade) == reach.lr_factor(0.0, 0.0, fade) == 0
    found = reach.lr_factor(lr, 1.0, fade)
    assert 0 <= found <= (1 - lr) ** 2
    assert lr < fade or found == (1 - lr) ** 2
    assert reach.lr_factor(2 * lr, 2.0, fade) == pytest.approx(found, abs=1e-15)
    tensors = [torch.tensor(x, dtype=torch.float64) for x in (2 * lr, 2.0, 0.0)]
    assert float(reach.lr_factor(*tensors[:2], fade)) == pytest.approx(found, abs=1e-15)
    assert float(reach.lr_factor(tensors[2], tensors[2], fade)) == 0


@every_variant
def test_the_horizon_is_in_steps_at_the_peak(options: dict[str, Any]) -> None:
    """Whatever the weights are: κ is 4 times the peak, and 0 of a horizon of 0."""
    for horizon in (0.0, 4.0):
        params = parameters([(6, 5)])
        optimizer = HATAM(params, 0.001, **{**options, "travel": 0.0, "horizon": horizon})
        feed(optimizer, params, gradients(params, 20), [0.001] * 5 + [0.0005] * 15)
        assert float(optimizer.state[params[0]]["reach"]) == pytest.approx(horizon * 0.001)


@pytest.mark.parametrize("lr", [0.0, torch.tensor(0.0)], ids=["float", "tensor"])
@pytest.mark.parametrize("path", [{}, {"foreach": False}], ids=str)
@every_variant
def test_an_lr_of_0_at_first_moves_nothing(options: dict[str, Any], path: dict[str, Any], lr: float | Tensor) -> None:
    """Though no number of steps is the limit: that times a peak of 0 is no number."""
    params = parameters()
    others = twins(params)
    optimizer = HATAM(params, copy.deepcopy(lr), **{**options, **path, "horizon": math.inf})
    feed(optimizer, params, gradients(params, 2))
    assert equal(params, others)


def test_only_hidden_weights_have_a_reach() -> None:
    """By shape and name; or as the group says."""
    model = nn.ModuleDict({"tokens": nn.Embedding(4, 3), "linear": nn.Linear(3, 2)})
    for hidden, expected in ((None, {"linear.weight"}), (False, set()), (True, set(dict(model.named_parameters())))):
        optimizer = Falling(model.named_parameters(), hidden=hidden)
        feed(optimizer, list(model.parameters()), gradients(list(model.parameters()), 2))
        assert {name for name, p in model.named_parameters() if "reach" in optimizer.state[p]} == expected


@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("kappa", [0.0, 0.003, 0.1])
def test_the_ceiling_on_sharpness_is_where_the_theory_says(beta1: float, kappa: float) -> None:
    """z and m of a quadratic with h = 1 grow on one side of it, and shrink on the other."""
    lr = 0.01
    for factor in (0.98, 1.02):
        curvature = factor * (2 + 2 * beta1) / ((1 - beta1) * (lr + 2 * kappa))
        z, m = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
        for _ in range(3000):
            m = beta1 * m + (1 - beta1) * curvature * (z - kappa * m)
            z = z - lr * m
        assert (abs(z) > 1e3) == (factor > 1)


# What is kept -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({"gamma": 0.0}, ADAMW_KEYS),
        ({}, UNIFORM_KEYS),
        ({"modulator": "relative"}, UNIFORM_KEYS | {"denom_mean", "reach_mean"}),
    ],
    ids=["adamw", "uniform", "relative"],
)
@every_path
def test_state_keys(options: dict[str, Any], keys: set[str], foreach: bool) -> None:
    """What is off allocates nothing; what is beyond AdamW's are 0-dim scalars."""
    params = parameters([(1000, 100)])
    optimizer = Falling(params, **options, foreach=foreach)
    feed(optimizer, params, gradients(params, 2))
    state = optimizer.state[params[0]]
    assert state.keys() == keys
    assert all(state[key].dim() == 0 for key in keys & {*REACH_STATE})
    size = sum(x.numel() * x.element_size() for x in state.values())
    assert 0 < size - 8 * 100_000 <= 24


# Numbers at the ends of their range ---------------------------------------------------------------------------------


def steps_ahead(first: float, dtype: torch.dtype, **options: Any) -> list[bool]:
    """After which of four steps w is ahead of z, where the first gradient is of this size and the others are larger."""
    param = nn.Parameter(torch.ones(8, dtype=dtype))
    optimizer = Reaching([param], 0.01, **options)
    found = []
    for scale in (first, 0.01, 0.01, 0.01):
        param.grad = scale * torch.ones(8, dtype=dtype)
        optimizer.step()
        w = param.detach().clone()
        with optimizer.straightened():
            found.append(not torch.equal(param, w))
    return found


@pytest.mark.parametrize(("modulator", "ahead"), [("uniform", [0, 0, 1, 1]), ("relative", [0, 0, 0, 1])])
@every_way
@pytest.mark.parametrize(
    ("dtype", "eps"),
    [(torch.float32, 1e-8), (torch.float64, 1e-8), (torch.bfloat16, 1e-8), (torch.float16, 1e-7)],
    ids=str,
)
def test_a_gradient_of_0_is_no_measure_of_sharpness(
    dtype: torch.dtype, eps: float, path: dict[str, Any], modulator: str, ahead: list[int]
) -> None:
    """The mean of h is then ε, rounded as the dtype has it: S is 0 at the next step, and no ratio is measured there."""
    assert steps_ahead(0.0, dtype, eps=eps, modulator=modulator, **path) == ahead


@every_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_gradient_below_eps_is_a_measure_of_sharpness(dtype: torch.dtype, path: dict[str, Any]) -> None:
    """A mean of 1.1 ε is more than ε."""
    assert steps_ahead(0.001, dtype, eps=0.01, modulator="relative", **path) == [0, 0, 1, 1]


def normal_complex() -> torch.Tensor:
    return torch.complex(torch.randn(4, generator=generator()), torch.randn(4, generator=generator(1)))


def test_a_complex_parameter_beside_a_narrow_one() -> None:
    """γ = 0 with state of another dtype, where torch's own AdamW cannot serve."""
    results = []
    for state_dtype in (None, torch.float32):
        c, b = nn.Parameter(normal_complex()), nn.Parameter(torch.ones(3).bfloat16())
        optimizer = HATAM([c, b], 0.1, gamma=0.0, state_dtype=state_dtype)
        for _ in range(5):
            c.grad, b.grad = normal_complex(), torch.ones(3).bfloat16()
            optimizer.step()
        results.append(torch.view_as_real(c.detach()))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {}], ids=str)
def test_a_gradient_that_is_conjugated_by_a_bit(options: dict[str, Any]) -> None:
    """As autograd gives it."""
    results = []
    for grad in (normal_complex().conj(), normal_complex().conj().resolve_conj()):
        c = nn.Parameter(normal_complex())
        optimizer = Falling([c], 0.1, hidden=True, **options)
        for _ in range(3):
            c.grad = grad
            optimizer.step()
        results.append(torch.view_as_real(c.detach()))
    assert torch.equal(*results)


@every_variant
@pytest.mark.parametrize("bad", [0, 3])
@pytest.mark.parametrize("path", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_a_square_beyond_the_range_harms_nobody(path: dict[str, Any], bad: int, options: dict[str, Any]) -> None:
    """h is infinite there, and nothing moves, as in AdamW."""
    rng = generator()
    p = nn.Parameter(torch.randn(4, generator=rng))
    optimizer = Falling([p], 0.01, **{**options, **path})
    for i in range(6):
        p.grad = torch.randn(4, generator=rng)
        if i == bad:
            p.grad[0] = 1e21
        optimizer.step()
        assert p.isfinite().all()
        assert p.abs().max() < 10


@every_variant
def test_a_tensor_that_begins_at_0_has_a_derivative(options: dict[str, Any]) -> None:
    """Of its ratio there is none before the first gradient."""
    start = torch.zeros(3, requires_grad=True)
    w = start.clone()
    optimizer = Falling([w], 0.1, differentiable=True, **options)
    for i in range(4):
        w.grad = torch.ones(3) * (-1) ** i * (i > 0)
        optimizer.step()
    w.sum().backward()
    assert start.grad is not None
    assert start.grad.isfinite().all()


def test_how_far_z_has_come() -> None:
    """By hand: nothing up to a path of 1, a square from there to the whole; the steps before the first ratio count."""
    paths = torch.tensor([0.0, 1.0, 2.5, 4.0, 9.0])
    assert reach.travel_factor(paths, 3.0).tolist() == [0.0, 0.0, 0.25, 1.0, 1.0]
    assert reach.travel_factor(paths, 0.0) == 1.0
    last, ratios = torch.tensor([0.0, 4.0, 4.0, 0.0]), torch.tensor([2.0, 4.0, 0.5, 0.0])
    found = reach.next_path_lengths(torch.ones(4), ratios, last, 0.5, 2.0, torch.tensor(6.0))
    assert found.tolist() == [1 + 6 * 2 / 2, 1 + 0.5 / 4, 1 + 0.5 / 0.5, 1.0]
