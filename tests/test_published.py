"""The source document's pseudocode against a float64 reference with a buffer for every symbol."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from conftest import cosine, feed, gradients, parameters, relative_error, through_a_file, twins
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hatam import PublishedHATAM


def reference(w: Tensor, grads: list[Tensor], lrs: list[float], o: dict[str, Any]) -> list[Tensor]:
    """w after each step."""
    (beta1, beta2), beta_c, eps = o["betas"], o["beta_c"], o["eps"]
    w = w.detach().double()
    m, v, c, before = (torch.zeros_like(w) for _ in range(4))
    found = []
    for t, (g, lr) in enumerate(zip(grads, lrs, strict=True), 1):
        g = g.double()
        c = beta_c * c + (1 - beta_c) * (g - before)
        h = (v / (1 - beta2 ** (t - 1)) if t > 1 else v).sqrt() + eps
        s = h / (h.mean() + eps) if o["modulator"] == "relative" else torch.ones_like(h)
        corrected, before = g + o["gamma"] * s * c, g
        m, v = beta1 * m + (1 - beta1) * corrected, beta2 * v + (1 - beta2) * corrected**2
        h = (v / (1 - beta2**t)).sqrt() + eps
        w = w - lr * (m / (1 - beta1**t) / h + o["weight_decay"] * w)
        found.append(w)
    return found


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
    options = {"betas": betas, "gamma": gamma, "beta_c": beta_c, "weight_decay": 0.1, "modulator": modulator}
    rows, lrs = gradients(params, 30, seed), cosine(30, 0.01, 5)
    optimizer = PublishedHATAM(params, 0.01, **options)
    columns = zip(*rows, strict=True)
    expected = [
        reference(p, list(grads), lrs, {**options, "eps": 1e-8}) for p, grads in zip(params, columns, strict=True)
    ]
    for t, (row, lr) in enumerate(zip(rows, lrs, strict=True)):
        feed(optimizer, params, [row], [lr])
        assert all(relative_error(p, w[t]) <= 1e-9 for p, w in zip(params, expected, strict=True))


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
