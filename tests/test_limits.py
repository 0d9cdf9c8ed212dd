"""What the method becomes at the ends of its options: AdamW, ATAM, and its forms as each other's coordinates."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from conftest import (
    cosine,
    equal,
    every_form,
    every_path,
    every_variant,
    feed,
    generator,
    gradients,
    parameters,
    relative_error,
    twins,
)
from torch import Tensor
from torch.optim import AdamW

from hatam import HATAM

RADIUS, MEANS = {"displacement_radius"}, {"denom_mean", "displacement_mean"}
ADAMW_KEYS = {"step", "exp_avg", "exp_avg_sq"}
COMMON = {"betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}


# γ = 0 is AdamW -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        pytest.param({"foreach": False}, id="single"),
        pytest.param({"foreach": True}, id="foreach"),
        pytest.param({}, id="default"),
        pytest.param({"lr": torch.tensor(0.01)}, id="tensor-lr"),
        pytest.param({"lr": torch.tensor([0.01])}, id="1-dim-tensor-lr"),
        pytest.param({"differentiable": False, "foreach": False}, id="not-differentiable"),
        pytest.param({"maximize": True}, id="maximize"),
        pytest.param({"maximize": True, "foreach": True}, id="maximize-foreach"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str)
@every_variant
def test_gamma_0_is_adamw_bit_for_bit(options: dict[str, Any], dtype: torch.dtype, path: dict[str, Any]) -> None:
    """Parameters and state, under a schedule; and no state beyond AdamW's."""
    path = {"lr": 0.01, **COMMON, **path}
    if isinstance(path["lr"], Tensor):
        path["lr"] = path["lr"].clone()
    params = parameters(dtype=dtype)
    others = twins(params)
    grads, lrs = gradients(params, 12), cosine(12, 0.01, 3)
    optimizer = HATAM(params, gamma=0.0, **options, **path)
    feed(optimizer, params, grads, lrs)
    if isinstance(path["lr"], Tensor):
        path["lr"] = path["lr"].clone()
    adamw = AdamW(others, **path)
    feed(adamw, others, grads, lrs)
    assert equal(params, others)
    for param, other in zip(params, others, strict=True):
        assert optimizer.state[param].keys() == ADAMW_KEYS
        for key in ADAMW_KEYS:
            assert torch.equal(optimizer.state[param][key], adamw.state[other][key])
    with optimizer.straightened():
        assert equal(params, others)


@every_path
@every_variant
def test_gamma_raised_from_0_in_mid_run(options: dict[str, Any], foreach: bool) -> None:
    """The missing state is made from AdamW's, and the correction sets in."""
    params = parameters()
    others = twins(params)
    grads = gradients(params, 20)
    optimizer = HATAM(params, 0.01, gamma=0.0, **options, foreach=foreach)
    adamw = AdamW(others, 0.01, foreach=foreach)
    feed(optimizer, params, grads[:10])
    feed(adamw, others, grads[:10])
    assert equal(params, others)
    optimizer.param_groups[0]["gamma"] = 1.0
    feed(optimizer, params, grads[10:])
    feed(adamw, others, grads[10:])
    for param, other in zip(params, others, strict=True):
        assert param.isfinite().all()
        assert not torch.equal(param, other)
    if options["form"] == "decoupled":  # the gradients are prescribed, so that z is AdamW's w
        with optimizer.straightened():
            assert all(relative_error(p, q) <= 1e-5 for p, q in zip(params, others, strict=True))


@every_path
@every_variant
def test_gamma_lowered_to_0_in_mid_run(options: dict[str, Any], foreach: bool) -> None:
    """The next step brings w back to z; from there on it is AdamW from that state."""
    params = parameters(dtype=torch.float64)
    grads = gradients(params, 20)
    optimizer = HATAM(params, 0.01, gamma=1.0, **options, foreach=foreach)
    feed(optimizer, params, grads[:10])
    with optimizer.straightened():
        others = twins(params)
    adamw = AdamW(others, 0.01, foreach=foreach)
    adamw.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # loading shares tensors
    optimizer.param_groups[0]["gamma"] = 0.0
    feed(optimizer, params, grads[10:])
    feed(adamw, others, grads[10:])
    for param, other in zip(params, others, strict=True):
        assert relative_error(param, other) <= 1e-14
    w = twins(params)
    with optimizer.straightened():
        assert equal(params, w)


# What is kept -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "extra"),
    [
        ({}, {*RADIUS, *MEANS, "displacement_scale"}),
        ({"modulator": "uniform"}, {*RADIUS, "displacement_scale"}),
        ({"radius": "lr"}, {*RADIUS, *MEANS}),
        ({"radius": "lr", "modulator": "uniform"}, RADIUS),
        ({"beta_c": 0.8}, {*RADIUS, *MEANS, "displacement_scale"}),
        ({"beta_c": 0.5}, {*RADIUS, *MEANS, "displacement_scale", "exp_avg_grad"}),
        ({"beta_c": 0.5, "modulator": "uniform", "radius": "lr"}, {*RADIUS, "exp_avg_grad"}),
        ({"form": "raw"}, {"exp_avg_grad", "denom_mean"}),
        ({"form": "raw", "modulator": "uniform"}, {"exp_avg_grad"}),
        ({"form": "published"}, {"exp_avg_grad", "denom_mean"}),
        ({"form": "published", "modulator": "uniform"}, {"exp_avg_grad"}),
    ],
    ids=lambda x: str(sorted(x) if isinstance(x, set) else x),
)
@every_path
def test_state_keys(options: dict[str, Any], extra: set[str], foreach: bool) -> None:
    """What is off allocates nothing; β1 is 0.8 here, so that βc = 0.8 shares m. Everything but e is a 0-dim scalar."""
    params = parameters()
    optimizer = HATAM(params, 0.01, betas=(0.8, 0.95), **options, foreach=foreach)
    feed(optimizer, params, gradients(params, 2))
    for param in params:
        state = optimizer.state[param]
        assert state.keys() == ADAMW_KEYS | extra
        assert all(state[key].dim() == 0 for key in extra - {"exp_avg_grad"})


@pytest.mark.parametrize(
    ("options", "bytes_per_parameter"),
    [
        ({"gamma": 0.0}, 8),
        ({"form": "decoupled"}, 8),
        ({"form": "decoupled", "beta_c": 0.5}, 12),
        ({"form": "raw"}, 12),
        ({"form": "published"}, 12),
    ],
    ids=str,
)
def test_state_size(options: dict[str, Any], bytes_per_parameter: int) -> None:
    """The default form costs what AdamW costs, up to a few scalars a tensor."""
    params = parameters([(1000, 100)])
    optimizer = HATAM(params, **options)
    feed(optimizer, params, gradients(params, 1))
    size = sum(x.numel() * x.element_size() for x in optimizer.state[params[0]].values())
    assert 0 < size - bytes_per_parameter * 100_000 <= 32


# The uniform modulator is ATAM --------------------------------------------------------------------------------------


@every_path
@pytest.mark.parametrize("form", ["published", "raw"])
def test_uniform_is_atam(form: str, foreach: bool) -> None:
    """ATAM, plainly: ĝ = g + γ c, then AdamW on ĝ. The raw form differs from it by what v is built from."""
    gamma, beta_c, (beta1, beta2), eps, wd = 1.5, 0.7, *COMMON.values()
    (param,) = parameters([(6, 3)], torch.float64)
    w = param.detach().clone()
    m, v, c, g_before = (torch.zeros_like(w) for _ in range(4))
    grads, lrs = gradients([param], 40), cosine(40, 0.02, 5)
    for t, ((g,), lr) in enumerate(zip(grads, lrs, strict=True), start=1):
        c = beta_c * c + (1 - beta_c) * (g - g_before)
        g_hat, g_before = g + gamma * c, g
        m = beta1 * m + (1 - beta1) * g_hat
        v = beta2 * v + (1 - beta2) * (g if form == "raw" else g_hat) ** 2
        w = w - lr * (m / (1 - beta1**t) / ((v / (1 - beta2**t)).sqrt() + eps) + wd * w)
    optimizer = HATAM(
        [param], 0.02, **COMMON, form=form, modulator="uniform", gamma=gamma, beta_c=beta_c, foreach=foreach
    )
    feed(optimizer, [param], grads, lrs)
    assert relative_error(param, w) <= 1e-12


# The feedback loop --------------------------------------------------------------------------------------------------


def largest_modulator(gamma: float, **options: Any) -> float:
    """max S after 3,000 steps of pure noise whose scale is lognormal over 2,000 coordinates, from the state."""
    rng = generator(3)
    scale = torch.randn(2000, generator=rng).exp()
    param = torch.nn.Parameter(torch.zeros(2000))
    beta2, eps, steps = 0.999, 1e-8, 3000
    optimizer = HATAM([param], 1e-3, betas=(0.9, beta2), eps=eps, weight_decay=0.0, gamma=gamma, **options)
    for _ in range(steps):
        param.grad = scale * torch.randn(2000, generator=rng)
        optimizer.step()
    state = optimizer.state[param]
    h = (state["exp_avg_sq"] / (1 - beta2**steps)).sqrt() + eps
    return float((h / state["denom_mean"]).max())


def test_the_published_form_feeds_on_its_own_correction() -> None:
    """v is built from ĝ, ĝ grows with S and S with v: the sharpest coordinate takes over the mean."""
    options = {"form": "published", "beta_c": 0.9}
    assert largest_modulator(4.0, **options) > 5 * largest_modulator(0.01, **options)


@pytest.mark.parametrize("form", ["raw", "decoupled"])
def test_the_other_forms_do_not(form: str) -> None:
    """Their v sees the raw gradient alone, so that S is the same whatever γ is."""
    options = {"form": form, "modulator_cap": math.inf}
    assert largest_modulator(4.0, **options) == largest_modulator(0.01, **options)


# raw is decoupled in other coordinates ------------------------------------------------------------------------------


def ema(x: Tensor, new: Tensor, beta: float) -> Tensor:
    return beta * x + (1 - beta) * new


@pytest.mark.parametrize("gamma", [0.5, 4.0])
@pytest.mark.parametrize(("beta1", "beta_c"), [(0.9, 0.9), (0.0, 0.9), (0.95, 0.5)])
def test_correcting_the_gradient_is_displacing_the_parameters(beta1: float, beta_c: float, gamma: float) -> None:
    r"""With S and v frozen, and A = EMA at rate β1, the raw form is, c_t being e_t − e_{t−1} and A linear,

        w_t = w_{t−1} − (lr/√v) A(g + γ S c)_t = w_{t−1} − (lr/√v) A(g)_t − (lr γ S/√v) (A(e)_t − A(e)_{t−1}),

    as A(e shifted by one step)_t = A(e)_{t−1} when all start from 0. So z_t = w_t + (lr γ S/√v) A(e)_t obeys
    z_t = z_{t−1} − (lr/√v) A(g)_t: plain momentum on z, its gradient taken at w, displaced along A(e).
    """
    rng = generator(5)
    n, lr = 200, 0.01
    S, root_v, hessian = (torch.randn(n, generator=rng, dtype=torch.float64).exp() for _ in range(3))
    w = torch.randn(n, generator=rng, dtype=torch.float64)
    z = w.clone()
    e, A_g, A_e, A_g_hat = (torch.zeros(n, dtype=torch.float64) for _ in range(4))
    for _ in range(500):
        g = hessian * w + torch.randn(n, generator=rng, dtype=torch.float64)  # the gradient at w, for both
        e, e_before = ema(e, g, beta_c), e
        A_g, A_e = ema(A_g, g, beta1), ema(A_e, e, beta1)
        A_g_hat = ema(A_g_hat, g + gamma * S * (e - e_before), beta1)
        w = w - lr / root_v * A_g_hat
        z = z - lr / root_v * A_g
        assert relative_error(w + lr * gamma * S / root_v * A_e, z) <= 1e-12


@every_form
def test_the_first_step_is_never_displaced_by_a_mean_that_does_not_exist(options: dict[str, Any]) -> None:
    """Without a mean of the step before, the decoupled form has S = 0: its first step is AdamW's. Others are finite."""
    params = parameters(dtype=torch.float64)
    others = twins(params)
    grads = gradients(params, 1)
    feed(HATAM(params, 0.01, **options), params, grads)
    feed(AdamW(others, 0.01), others, grads)
    for param, other in zip(params, others, strict=True):
        assert param.isfinite().all()
        if options["form"] == "decoupled":
            assert relative_error(param, other) <= 1e-15


@pytest.mark.parametrize("path", [{}, {"foreach": True}, {"foreach": False}], ids=str)
@pytest.mark.parametrize(
    ("dtype", "eps"), [(torch.float32, 1e-8), (torch.bfloat16, 1e-8), (torch.float16, 1e-7)], ids=str
)
def test_a_gradient_of_0_is_no_measure_of_sharpness(dtype: torch.dtype, eps: float, path: dict[str, Any]) -> None:
    """The mean of h is then ε, rounded as the dtype has it; the first gradient after it must not be divided by that."""
    param = torch.nn.Parameter(torch.ones(8, dtype=dtype))
    optimizer = HATAM([param], 0.01, eps=eps, radius="lr", modulator_cap=math.inf, **path)
    for g in (torch.zeros(8), 0.01 * torch.randn(8, generator=generator())):
        param.grad = g.to(dtype)
        optimizer.step()
    w = param.detach().clone()
    with optimizer.straightened():
        assert torch.equal(param, w)


def test_a_complex_parameter_beside_a_narrow_one() -> None:
    """γ = 0 with state of another dtype, where torch's own AdamW cannot serve."""
    results = []
    for state_dtype in (None, torch.float32):
        c, b = torch.nn.Parameter(normal_complex()), torch.nn.Parameter(torch.ones(3).bfloat16())
        optimizer = HATAM([c, b], 0.1, gamma=0, state_dtype=state_dtype)
        for _ in range(5):
            c.grad, b.grad = normal_complex(), torch.ones(3).bfloat16()
            optimizer.step()
        results.append(torch.view_as_real(c.detach()))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_a_gradient_that_is_conjugated_by_a_bit(options: dict[str, Any]) -> None:
    """As autograd gives it."""
    results = []
    for grad in (normal_complex().conj(), normal_complex().conj().resolve_conj()):
        c = torch.nn.Parameter(normal_complex())
        optimizer = HATAM([c], 0.1, **options)
        for _ in range(3):
            c.grad = grad
            optimizer.step()
        results.append(torch.view_as_real(c.detach()))
    assert torch.equal(*results)


def normal_complex() -> torch.Tensor:
    return torch.complex(torch.randn(4, generator=generator()), torch.randn(4, generator=generator(1)))


@pytest.mark.parametrize("bad", [0, 3])
@pytest.mark.parametrize("options", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=str)
def test_without_a_cap_a_square_beyond_the_range_harms_nobody(options: dict[str, Any], bad: int) -> None:
    """h is infinite there, and nothing moves, as in AdamW."""
    rng = generator()
    p = torch.nn.Parameter(torch.randn(4, generator=rng))
    optimizer = HATAM([p], 0.01, modulator_cap=math.inf, **options)
    for i in range(6):
        p.grad = torch.randn(4, generator=rng)
        if i == bad:
            p.grad[0] = 1e21
        optimizer.step()
        assert p.isfinite().all()
        assert p.abs().max() < 10


def test_a_tensor_that_begins_at_0_has_a_derivative() -> None:
    """Of the scale of its displacement there is none before the first gradient."""
    start = torch.zeros(3, requires_grad=True)
    w = start.clone()
    optimizer = HATAM([w], 0.1, differentiable=True)
    for i in range(3):
        w.grad = torch.ones(3) * (i > 0)
        optimizer.step()
    w.sum().backward()
    assert start.grad is not None
    assert start.grad.isfinite().all()
