"""Both code paths of every form against the float64 reference, whose every symbol is a buffer of its own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import (
    DEFAULT_FORMS,
    cosine,
    equal,
    every_form,
    every_path,
    every_variant,
    feed,
    gradients,
    parameters,
    relative_error,
    twins,
    unit_of,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hatam import HATAM, PUBLISHED_FORM
from hatam.forms import FORMS
from hatam.reference import Reference

TOLERANCE = 1e-12

settings_of_a_run = st.fixed_dictionaries(
    {
        "betas": st.tuples(st.sampled_from([0.0, 0.5, 0.9, 0.95]), st.sampled_from([0.0, 0.5, 0.95, 0.999])),
        "beta_c": st.sampled_from([None, 0.0, 0.5, 0.9, 0.97]),
        "eps": st.sampled_from([1e-10, 1e-8, 1e-3]),
        "weight_decay": st.sampled_from([0.0, 1e-2, 0.3]),
        "gamma": st.floats(1e-3, 5.0),
    }
)
a_shape = st.sampled_from([(), (1,), (9,), (4, 5), (2, 3, 4)])
a_cap = st.sampled_from([None, 0.5, 2.0, math.inf])
a_fade = st.sampled_from([None, 0.5, 1.0])
a_radius_cap = st.sampled_from([None, 1e-3, 0.1])


def references(params: list[torch.nn.Parameter], optimizer: HATAM) -> list[Reference]:
    """A reference for every parameter, with every default of the optimizer's only group made explicit."""
    group = optimizer.param_groups[0]
    form = FORMS[group["form"]]
    default_beta_c = group["betas"][0] if form.beta_c is None else form.beta_c
    return [
        Reference(
            p,
            form=group["form"],
            gamma=group["gamma"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            beta_c=default_beta_c if group["beta_c"] is None else group["beta_c"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            cap=form.cap if group["modulator_cap"] is None else group["modulator_cap"],
            fade=0.1 if group["fade"] is None else group["fade"],
            uniform=group["modulator"] == "uniform",
            **unit_of(optimizer),
        )
        for p in params
    ]


def compare(
    optimizer: HATAM,
    params: list[torch.nn.Parameter],
    oracles: list[Reference],
    grads: list[list[Tensor]],
    lrs: list[float],
) -> None:
    """The same steps for both; w at the end of every step, z at the last.

    The error is relative to the tensor's largest entry so far: a scalar that happens to pass through 0 has no digits.
    """
    largest = [oracle.w.abs().max() for oracle in oracles]
    for row, lr in zip(grads, lrs, strict=True):
        feed(optimizer, params, [row], [lr])
        for i, (param, oracle, grad) in enumerate(zip(params, oracles, row, strict=True)):
            oracle.step(grad, lr)
            largest[i] = largest[i].maximum(oracle.w.abs().max())
            assert (param.detach() - oracle.w).abs().max() <= TOLERANCE * largest[i]
    with optimizer.straightened():
        for param, oracle, scale in zip(params, oracles, largest, strict=True):
            assert (param.detach() - oracle.z).abs().max() <= TOLERANCE * scale


@every_path
@every_variant
@given(
    shape=a_shape,
    run=settings_of_a_run,
    cap=a_cap,
    fade=a_fade,
    radius_cap=a_radius_cap,
    lr=st.floats(1e-4, 0.1),
    seed=st.integers(0, 10**6),
)
def test_agrees_with_the_reference(
    options: dict[str, Any],
    foreach: bool,
    shape: tuple[int, ...],
    run: dict[str, Any],
    cap: float | None,
    fade: float | None,
    radius_cap: float | None,
    lr: float,
    seed: int,
) -> None:
    """Any options, any shape, a schedule with warm-up that ends at 0."""
    extra: dict[str, Any] = {}
    if options["modulator"] == "relative":
        extra["modulator_cap"] = cap
    if options["form"] == "decoupled":
        extra["fade"] = fade
    if options["form"] == "decoupled" and options.get("radius", "absolute") == "absolute":
        extra["radius_cap"] = radius_cap
    params = parameters([shape, (3,)], torch.float64, seed)
    optimizer = HATAM(params, lr, **options, **run, **extra, foreach=foreach)
    compare(optimizer, params, references(params, optimizer), gradients(params, 30, seed + 1), cosine(30, lr, 5))


@every_form
def test_agrees_over_a_thousand_steps(options: dict[str, Any]) -> None:
    """Rounding must not add up: the decoupled form undoes and redoes its displacement every step."""
    params = parameters(dtype=torch.float64)
    optimizer = HATAM(params, 0.01, **options)
    compare(optimizer, params, references(params, optimizer), gradients(params, 1000), cosine(1000, 0.01, 50))


def test_first_step_of_the_published_form() -> None:
    """By hand: v_0 = 0 makes h = ε everywhere, so S_1 = ε / (ε + ε) = 1/2; and c_1 = (1 − βc) g_1."""
    w, g, lr, wd, eps = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 0.1]).double(), 0.1, 0.01, 1e-8
    param = torch.nn.Parameter(w.clone())
    optimizer = HATAM([param], lr, weight_decay=wd, eps=eps, **{**PUBLISHED_FORM, "gamma": 2.0, "beta_c": 0.9})
    feed(optimizer, [param], [[g]])
    g_hat = g + 2.0 * 0.5 * (1 - 0.9) * g  # = 1.1 g
    assert relative_error(optimizer.state[param]["exp_avg"], 0.1 * 1.1 * g) <= 1e-15
    assert relative_error(optimizer.state[param]["exp_avg_sq"], 0.001 * (1.1 * g) ** 2) <= 1e-13
    assert relative_error(param, w - lr * (g_hat / (g_hat + eps) + wd * w)) <= 1e-14  # m̂ = ĝ and sqrt(v̂) = |ĝ|
    oracle = Reference(w, form="published", gamma=2.0, beta_c=0.9, weight_decay=wd, eps=eps)
    oracle.step(g, lr)
    assert torch.equal(oracle.S, torch.tensor([0.5, 0.5]).double())
    assert relative_error(oracle.c, (1 - 0.9) * g) <= 1e-15


@pytest.mark.parametrize("beta_c", [0.0, 0.5, 0.9, 0.99])
def test_identity_that_removes_a_buffer(beta_c: float) -> None:
    """c_t = EMA(g_t − g_{t−1}), which the reference stores, is e_t − e_{t−1} = (1 − βc)(g_t − e_{t−1}), e = EMA(g)."""
    oracle = Reference(torch.zeros(50), form="decoupled", beta_c=beta_c)
    params = parameters([(50,)], torch.float64)
    for (g,) in gradients(params, 200):
        e = oracle.e.clone()
        oracle.step(g, 0.01)
        assert relative_error(oracle.c, (1 - beta_c) * (g - e)) <= TOLERANCE
        assert relative_error(oracle.c, oracle.e - e) <= TOLERANCE


@every_variant
def test_paths_agree_in_float32(options: dict[str, Any]) -> None:
    """One rounding may differ per operation and step; over 50 steps they stay within 50 units in the last place."""
    params = parameters(((6, 5), (40,), (3, 2, 4), (), (1,)))
    others = twins(params)
    grads = gradients(params, 50)
    feed(HATAM(params, 0.01, **options, foreach=False), params, grads)
    feed(HATAM(others, 0.01, **options, foreach=True), others, grads)
    for param, other in zip(params, others, strict=True):
        assert relative_error(other, param) <= 50 * torch.finfo(torch.float32).eps


@every_path
@every_variant
def test_maximize_is_minimizing_the_negated_gradients(options: dict[str, Any], foreach: bool) -> None:
    params = parameters()
    others = twins(params)
    grads = gradients(params, 10)
    feed(HATAM(params, 0.01, **options, foreach=foreach, maximize=True), params, grads)
    feed(HATAM(others, 0.01, **options, foreach=foreach), others, [[-g for g in row] for row in grads])
    assert equal(params, others)


@every_path
@every_variant
def test_complex_is_pairs_of_real_numbers(options: dict[str, Any], foreach: bool) -> None:
    """The mean of h, too, is over real and imaginary parts alike. straightened() included."""
    params = parameters(((4, 3), (5,)), torch.complex64)
    others = [torch.nn.Parameter(torch.view_as_real(p.detach()).clone()) for p in params]
    grads = gradients(params, 10)
    optimizer = HATAM(params, 0.01, **options, foreach=foreach)
    other = HATAM(others, 0.01, **options, foreach=foreach)
    feed(optimizer, params, grads)
    feed(other, others, [[torch.view_as_real(g) for g in row] for row in grads])
    assert equal([torch.view_as_real(p) for p in params], others)
    with optimizer.straightened(), other.straightened():
        assert equal([torch.view_as_real(p) for p in params], others)


@every_path
def test_groups_are_independent(foreach: bool) -> None:
    """Several groups, each of another form, do what an optimizer of each alone does, in units they do not share."""
    options = [
        {"lr": 0.01, "foreach": foreach, "radius": "relative"},
        {"lr": 0.03, "foreach": foreach, "betas": (0.8, 0.99), **DEFAULT_FORMS["raw"]},
        {"lr": 0.02, "foreach": foreach, "weight_decay": 0.2, **DEFAULT_FORMS["published"]},
        {"lr": 0.01, "foreach": foreach, "gamma": 0.0, "maximize": True},
        {"lr": 0.01, "foreach": foreach, "beta_c": 0.5, "modulator": "uniform", "fade": 1.0, "radius": "lr"},
    ]
    params = parameters([(3, 2)] * len(options))
    others = twins(params)
    grads = gradients(params, 10)
    together = HATAM([{"params": [p], **o} for p, o in zip(params, options, strict=True)])
    feed(together, params, grads)
    for i, (other, o) in enumerate(zip(others, options, strict=True)):
        feed(HATAM([other], **o), [other], [[row[i]] for row in grads])
    assert equal(params, others)


@every_path
@every_variant
def test_a_parameter_without_a_gradient_is_left_alone(options: dict[str, Any], foreach: bool) -> None:
    params = parameters()
    start = params[1].detach().clone()
    optimizer = HATAM(params, 0.01, **options, foreach=foreach)
    fed = [params[0], params[2]]
    feed(optimizer, fed, gradients(fed, 5))
    assert torch.equal(params[1], start)
    assert params[1] not in optimizer.state
    with optimizer.straightened():
        assert torch.equal(params[1], start)


@every_path
@every_variant
def test_zero_element_tensors(options: dict[str, Any], foreach: bool) -> None:
    """Their mean of h is NaN; the tensors beside them must not hear of it."""
    params = parameters(((0,), (3,), (2, 0)))
    others = twins(params[1:2])
    grads = gradients(params, 5)
    feed(HATAM(params, 0.01, **options, foreach=foreach), params, grads)
    feed(HATAM(others, 0.01, **options, foreach=foreach), others, [row[1:2] for row in grads])
    assert params[0].shape == (0,)
    assert params[2].shape == (2, 0)
    assert equal(params[1:2], others)


@pytest.mark.parametrize("lr_shape", [(), (1,)], ids=["0-dim", "1-dim"])
@every_variant
def test_tensor_lr_equals_float_lr(options: dict[str, Any], lr_shape: tuple[int, ...]) -> None:
    """To a rounding of lr itself, which as a tensor is a float64 here."""
    params = parameters(dtype=torch.float64)
    others = twins(params)
    grads = gradients(params, 20)
    lrs = cosine(20, 0.01, 3)
    lr = torch.full(lr_shape, 0.01, dtype=torch.float64)
    feed(HATAM(params, 0.01, **options, foreach=False), params, grads, lrs)
    feed(HATAM(others, lr, **options), others, grads, lrs)
    for param, other in zip(params, others, strict=True):
        assert other.shape == param.shape
        assert relative_error(other, param) <= TOLERANCE
