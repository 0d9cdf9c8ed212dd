"""The source document's pseudocode and the forms of the first study, against their float64 reference."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from conftest import cosine, feed, gradients, parameters, relative_error, through_a_file, twins
from first_reference import Reference
from hypothesis import given
from hypothesis import strategies as st

from hatam import PublishedHATAM
from hatam.bench.first_forms import FirstHATAM

FORMS: dict[str, dict[str, Any]] = {
    "absolute": {"form": "decoupled", "radius": "absolute", "gamma": 0.5},
    "absolute, capped": {"form": "decoupled", "radius": "absolute", "gamma": 0.5, "radius_cap": 0.02},
    "relative": {"form": "decoupled", "radius": "relative", "gamma": 0.1, "beta_c": 0.5},
    "by lr": {"form": "decoupled", "radius": "lr", "gamma": 3.0, "modulator_cap": 3.0},
    "raw": {"form": "raw"},
    "published": {"form": "published"},
}


def reference_of(p: torch.Tensor, o: dict[str, Any], all_params: list[torch.nn.Parameter]) -> Reference:
    norm = {"lr": None, "relative": 0.0}.get(o["radius"], math.sqrt(sum(float(q.square().sum()) for q in all_params)))
    same = {
        key: o[key]
        for key in ("form", "gamma", "beta_c", "eps", "weight_decay", "cap", "fade", "uniform", "radius_cap")
    }
    numel = sum(q.numel() for q in all_params)
    return Reference(p, beta1=o["betas"][0], beta2=o["betas"][1], **same, norm=norm, numel=numel)


@pytest.mark.parametrize("modulator", ["relative", "uniform"])
@pytest.mark.parametrize("options", FORMS.values(), ids=FORMS.keys())
def test_the_first_forms(options: dict[str, Any], modulator: str) -> None:
    params = parameters(dtype=torch.float64)
    optimizer = FirstHATAM(params, 0.01, betas=(0.9, 0.95), modulator=modulator, **options)
    with torch.no_grad():
        oracles = [reference_of(p, optimizer.param_groups[0], params) for p in params]
    for row, lr in zip(gradients(params, 60), cosine(60, 0.01, 5), strict=True):
        feed(optimizer, params, [row], [lr])
        for p, oracle, g in zip(params, oracles, row, strict=True):
            oracle.step(g, lr)
            assert relative_error(p, oracle.w) <= 1e-10
        with optimizer.straightened():
            assert all(relative_error(p, oracle.z) <= 1e-10 for p, oracle in zip(params, oracles, strict=True))


@given(
    gamma=st.floats(0.0, 5.0),
    beta_c=st.floats(0.0, 0.97),
    betas=st.tuples(st.floats(0.0, 0.95), st.floats(0.5, 0.999)),
    modulator=st.sampled_from(["relative", "uniform"]),
    seed=st.integers(0, 10**6),
)
def test_the_published_form_is_the_documents(
    gamma: float, beta_c: float, betas: tuple[float, float], modulator: str, seed: int
) -> None:
    """c and g_{t−1} in one buffer, and ATAM, to rounding."""
    params = parameters(dtype=torch.float64, seed=seed)
    options = {"betas": betas, "gamma": gamma, "beta_c": beta_c, "weight_decay": 0.1}
    optimizer = PublishedHATAM(params, 0.01, modulator=modulator, **options)
    oracles = [
        Reference(p, "published", gamma, *betas, beta_c, weight_decay=0.1, uniform=modulator == "uniform")
        for p in params
    ]
    for row, lr in zip(gradients(params, 30, seed), cosine(30, 0.01, 5), strict=True):
        feed(optimizer, params, [row], [lr])
        for p, oracle, g in zip(params, oracles, row, strict=True):
            oracle.step(g, lr)
            assert relative_error(p, oracle.w) <= 1e-9


def test_the_first_step_of_the_published_form() -> None:
    """By hand: v_0 = 0 makes h = ε everywhere, so S_1 = ε / (ε + ε) = 1/2; and c_1 = (1 − βc) g_1."""
    w, g, lr, wd, eps = torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 0.1]).double(), 0.1, 0.01, 1e-8
    param = torch.nn.Parameter(w.clone())
    optimizer = PublishedHATAM([param], lr, weight_decay=wd, eps=eps, gamma=2.0)
    feed(optimizer, [param], [[g]])
    g_hat = g + 2.0 * 0.5 * (1 - 0.9) * g  # = 1.1 g
    assert relative_error(optimizer.state[param]["exp_avg"], 0.1 * g_hat) <= 1e-15
    assert relative_error(optimizer.state[param]["exp_avg_sq"], 0.001 * g_hat**2) <= 1e-13
    assert relative_error(param, w - lr * (g_hat / (g_hat + eps) + wd * w)) <= 1e-14  # m̂ = ĝ and sqrt(v̂) = |ĝ|


def test_the_published_form_resumes_and_compiles() -> None:
    params = parameters([(5, 4), (3,)])
    others, third = twins(params), twins(params)
    grads = gradients(params, 6)
    straight, first = PublishedHATAM(params, 0.01), PublishedHATAM(others, 0.01)
    feed(straight, params, grads)
    feed(first, others, grads[:3])
    resumed = PublishedHATAM(others, 0.5)
    resumed.load_state_dict(through_a_file(copy.deepcopy(first.state_dict())))
    feed(resumed, others, grads[3:])
    assert all(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    torch._dynamo.reset()
    compiled = PublishedHATAM(third, 0.01)
    step = torch.compile(compiled.step, backend="aot_eager")
    for row in grads:
        for p, g in zip(third, row, strict=True):
            p.grad = g.clone()
        step()
    assert all(relative_error(p, q) <= 1e-6 for p, q in zip(params, third, strict=True))


@pytest.mark.parametrize(
    "options", [{"gamma": -1.0}, {"beta_c": 1.0}, {"eps": 0.0}, {"modulator": "isotropic"}], ids=str
)
def test_wrong_options_of_the_published_form_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        PublishedHATAM(parameters(), **options)
