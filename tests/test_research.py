"""The formulas of research/ against brute force, a few steps of each check, and docs/theory.md against its records."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from conftest import bits, generator
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from hatam.bench import report
from research import formulas, landscape, theory
from research.check import chosen
from research.networks import at_loss

ROOT = Path(__file__).resolve().parent.parent
rates = st.floats(0.0, 0.99)


@given(beta_c=rates, seed=st.integers(0, 10**6))
def test_the_bend_in_one_buffer(beta_c: float, seed: int) -> None:
    gradients = torch.randn(30, 4, generator=generator(seed), dtype=torch.float64)
    torch.testing.assert_close(formulas.bend_in_one_buffer(gradients, beta_c), formulas.bend(gradients, beta_c))


@given(omega=st.floats(0.05, math.pi), beta_c=st.floats(0.0, 0.95))
def test_the_transfer_function_is_what_an_oscillation_meets(omega: float, beta_c: float) -> None:
    """The bend of e^{iωt}, after what came of its start has died away."""
    t = torch.arange(600, dtype=torch.float64)
    wave = torch.stack([(omega * t).cos(), (omega * t).sin()], dim=1)
    c = formulas.bend(wave, beta_c)[-1]
    found = complex(*c.tolist()) / complex(*wave[-1].tolist())
    assert found == pytest.approx(formulas.transfer(omega, beta_c), abs=1e-9)


def grows(lam: float, beta1: float, *, beta_c: float = 0.9, gamma_s: float = 0.0, kappa: float = 0.0) -> bool:
    """Adam with a frozen denominator of 1 and lr = 1 on λ w² / 2, with the correction, or a gradient at z − κ m."""
    z, m, e = 1.0, 0.0, 0.0
    for _ in range(4000):
        g = lam * (z - kappa * m)
        c = (1 - beta_c) * (g - e)
        e += c
        m = beta1 * m + (1 - beta1) * (g + gamma_s * c)
        z -= m
        if abs(z) > 1e6:
            return True
    return False


@pytest.mark.parametrize("beta1", [0.9, 0.5, 0.0])
@pytest.mark.parametrize(
    ("form", "gain"),
    [({}, 1.0)]
    + [({"gamma_s": s, "beta_c": b}, formulas.gain_of_correction(s, b)) for s in (1.0, 10.0) for b in (0.5, 0.9)]
    + [({"kappa": k}, formulas.gain_of_reach(k, 1.0)) for k in (1.0, 4.0)],
)
def test_the_edge_of_stability_is_where_oscillations_begin_to_grow(
    beta1: float, form: dict[str, float], gain: float
) -> None:
    edge = formulas.edge(beta1) / gain
    assert not grows(0.98 * edge, beta1, **form)
    assert grows(1.02 * edge, beta1, **form)


@given(noise=st.floats(0.01, 5.0), gamma=st.floats(0.0, 5.0), beta_c=st.floats(0.0, 0.95))
def test_the_fixed_point_is_one(noise: float, gamma: float, beta_c: float) -> None:
    s = formulas.fixed_point(noise, gamma, beta_c)
    threshold = math.sqrt((1 + beta_c) / 2) / max(gamma * (1 - beta_c), 1e-12)
    assert math.isinf(s) is (noise >= threshold)
    if not math.isinf(s):
        assert noise * formulas.inflation(s, gamma, beta_c) == pytest.approx(s, rel=1e-6)


def test_inflation_is_that_of_white_noise() -> None:
    g = torch.randn(50_000, generator=generator(), dtype=torch.float64)
    corrected = g + 4.0 * formulas.bend(g[:, None], 0.9)[:, 0]
    assert float(corrected.std() / g.std()) == pytest.approx(formulas.inflation(4.0, 1.0, 0.9), rel=0.02)


# The checks -----------------------------------------------------------------------------------------------------------

SHORT: dict[str, dict[str, int]] = {
    "identities": {},
    "damping": {"steps": 50, "window": 20},
    "feedback": {"steps": 20},
    "quasi-newton": {"steps": 10},
    "proxy": {"steps": 4, "probes": 2},
    "trace": {"steps": 4, "points": 2},
    "edge": {"steps": 4, "points": 2},
}


@pytest.mark.parametrize("name", theory.CHECKS)
def test_each_check_runs(name: str) -> None:
    """Its first case and its last, for a few steps."""
    cases = theory.CHECKS[name].cases
    for case in (cases[0], cases[-1]):
        found = theory.CHECKS[name].run(**case, **SHORT[name], seed=0)
        values = torch.tensor([x for x in torch.utils._pytree.tree_leaves(found) if isinstance(x, float)])
        assert len(values) > 0
        assert values.isfinite().all()


def test_what_has_a_record_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(theory, "ProcessPoolExecutor", lambda processes, *rest: ThreadPoolExecutor(processes))
    path = tmp_path / "identities.json"
    theory.measure("identities", 1, path, 1)
    before = theory.read(path)
    assert len(before) == len(theory.CHECKS["identities"].cases)
    theory.measure("identities", 2, path, 1)
    assert len(theory.read(path)) == 2 * len(before)
    assert all(run in theory.read(path) for run in before)
    monkeypatch.setattr(theory, "ProcessPoolExecutor", None)
    theory.measure("identities", 1, path, 1)


def test_the_surface_of_a_quadratic() -> None:
    """The middle is where the model is, directions are as long as filters, and nothing has moved."""
    model = nn.Linear(3, 2)
    w, before = model.weight, [bits(p) for p in model.parameters()]
    start = w.detach().clone()
    grid = torch.tensor(landscape.surface(model, lambda: float((w - start).square().sum()), points=5))
    assert grid[2, 2] == 0
    torch.testing.assert_close(grid, grid.flip(0, 1))
    assert grid[2, 4] == pytest.approx(float(start.square().sum()))
    assert [bits(p) for p in model.parameters()] == before
    assert not landscape.filter_normalized(torch.ones(5), generator()).any()
    assert len(landscape.around("SAM", steps=2, points=3)["loss"]) == 3


# The page -------------------------------------------------------------------------------------------------------------


def runs(name: str, **values: Any) -> list[dict[str, Any]]:
    return chosen(json.loads((ROOT / f"results/theory/{name}.json").read_text(encoding="utf-8"))["runs"], **values)


@pytest.mark.parametrize("name", theory.CHECKS)
def test_the_page_has_the_records(name: str) -> None:
    """Each table to the letter, each with five seeds, each with its figure."""
    page = (ROOT / "docs/theory.md").read_text(encoding="utf-8")
    assert report.replace_between(page, name, theory.CHECKS[name].table(runs(name))) == page
    assert {run["seed"] for run in runs(name)} == set(range(5))
    assert (f"figures/theory-{name}.svg" in page) is (theory.CHECKS[name].draw is not None)


def mean(found: list[dict[str, Any]], key: str) -> float:
    return fmean(run[key] for run in found)


def test_what_the_page_claims() -> None:
    """The words between the tables, each held against its record."""
    assert max(run["error"] for run in runs("identities")) < 1e-14
    assert mean(runs("damping", regime="oscillating"), "slope") == pytest.approx(2, abs=0.1)
    assert mean(runs("damping", regime="oscillating, S = 1"), "slope") == pytest.approx(1, abs=0.01)
    assert mean(runs("damping", regime="rotated: the Hessian is not diagonal"), "damped") < 0.5
    for batch in (32, 128, 512):
        assert fmean(1 - x**2 for run in runs("quasi-newton", batch=batch) for x in run["cosines"]) > 0.5
    assert max(run["error"] for run in runs("feedback")) < 0.1
    assert min(run["max_s"] for run in runs("feedback", gamma=1.0)) > 100
    for run in runs("edge"):
        assert fmean(run["effective"][10:]) == pytest.approx(38, rel=0.1)
    assert trace("SAM", 0.25) < 0.6 * trace("AdamW", 0.25) < 0.6 * trace("published, γ = 1", 0.25)
    assert trace("HATAM, horizon 8", 0.125) < 0.7 * trace("AdamW", 0.125)
    assert trace("HATAM", 0.125) < 0.9 * trace("AdamW", 0.125)


def trace(contender: str, loss: float) -> float:
    """The mean over the runs, all of which must come there."""
    found = [at_loss(run["curve"], loss) for run in runs("trace", contender=contender)]
    return fmean(x for x in found if x is not None) if None not in found else math.nan
