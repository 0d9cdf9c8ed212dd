"""Every code path against the float64 reference, whose every symbol is a buffer of its own."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import cosine, every_path, every_variant, feed, gradients, oracles, parameters
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hatam import HATAM
from hatam.testing import Reference

TOLERANCE = 1e-11

settings_of_a_run = st.fixed_dictionaries(
    {
        "betas": st.tuples(st.sampled_from([0.0, 0.5, 0.9, 0.95]), st.sampled_from([0.5, 0.95, 0.999])),
        "eps": st.sampled_from([1e-10, 1e-8, 1e-3]),
        "weight_decay": st.sampled_from([0.0, 1e-2, 1.0]),
        "gamma": st.floats(1e-3, 1.0),
        "travel": st.sampled_from([0.0, 0.5, 5.0]),
        "horizon": st.sampled_from([0.5, 4.0, math.inf]),
        "fade": st.sampled_from([0.1, 0.5, 1.0]),
    }
)
a_shape = st.sampled_from([(), (1,), (9,), (4, 5), (2, 3, 4)])
PATHS: dict[str, dict[str, Any]] = {
    "single": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "tensor-lr": {"foreach": False, "lr": torch.tensor(0.0, dtype=torch.float64)},
}


def compare(
    optimizer: HATAM,
    params: list[torch.nn.Parameter],
    references: list[Reference],
    grads: list[list[Tensor]],
    lrs: list[float],
    tolerance: float = TOLERANCE,
) -> None:
    """The same steps for both; w and z at the end of every step.

    The error is relative to the tensor's largest entry so far: a scalar that happens to pass through 0 has no digits.
    """
    largest = [oracle.w.abs().max() for oracle in references]
    for row, lr in zip(grads, lrs, strict=True):
        feed(optimizer, params, [row], [lr])
        with optimizer.straightened():
            at_z = [p.detach().clone() for p in params]
        for i, (param, oracle, grad) in enumerate(zip(params, references, row, strict=True)):
            oracle.step(grad, lr)
            largest[i] = largest[i].maximum(oracle.w.abs().max())
            assert (param.detach() - oracle.w).abs().max() <= tolerance * largest[i]
            assert (at_z[i] - oracle.z).abs().max() <= tolerance * largest[i]


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@every_variant
@given(shape=a_shape, run=settings_of_a_run, lr=st.floats(1e-4, 0.3), seed=st.integers(0, 10**6))
def test_agrees_with_the_reference(
    options: dict[str, Any], path: dict[str, Any], shape: tuple[int, ...], run: dict[str, Any], lr: float, seed: int
) -> None:
    """Any options, any shape, a schedule with warm-up that ends at 0."""
    params = parameters([shape, (3, 3), (3,)], torch.float64, seed)
    optimizer = HATAM(params, **{"lr": lr, **path, **options, **run, "hidden": None if seed % 2 else True})
    compare(optimizer, params, oracles(params, optimizer), gradients(params, 30, seed + 1), cosine(30, lr, 5))


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@every_variant
def test_agrees_over_many_steps(options: dict[str, Any], path: dict[str, Any]) -> None:
    """Rounding must not add up: the offset is undone and redone in every step."""
    params = parameters(dtype=torch.float64)
    optimizer = HATAM(params, **{"lr": 0.03, **path, **options, "travel": 1.0})
    references = oracles(params, optimizer)
    compare(optimizer, params, references, gradients(params, 500), cosine(500, 0.03, 25), 1e-9)
    assert all(oracle.rms_ratio > 0 for oracle in references)
    assert all(oracle.path_length > 1 for oracle in references), "no reach, then a part of it"
    assert any(oracle.path_length > 2 for oracle in references), "then the whole"


@every_path
@every_variant
def test_float32_is_near(options: dict[str, Any], foreach: bool) -> None:
    params = parameters()
    optimizer = HATAM(params, 0.01, **options, foreach=foreach)
    compare(optimizer, params, oracles(params, optimizer), gradients(params, 200), cosine(200, 0.01, 10), 2e-3)


@pytest.mark.parametrize("size", [1.0, 0.05])
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
@every_variant
def test_a_restart_and_a_rise_of_lr(options: dict[str, Any], path: dict[str, Any], size: float) -> None:
    """At a new peak there is no reach; what is measured goes on from where it was, be ρ above or below 1."""
    params = [torch.nn.Parameter(size * p.detach()) for p in parameters(dtype=torch.float64)]
    optimizer = HATAM(params, **{"lr": size * 0.01, **path, **options, "travel": 0.0})
    lrs = [size * lr for lr in (*cosine(30, 0.01), *cosine(30, 0.03, 5), *[0.01, 0.04, 0.0, 0.02] * 5)]
    compare(optimizer, params, oracles(params, optimizer), gradients(params, len(lrs)), lrs)
