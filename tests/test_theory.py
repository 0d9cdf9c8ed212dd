"""The formulas of hatam.bench.theory against brute force, and the claims of docs/theory.md against its records."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from hatam.bench import report
from hatam.bench.cli import app
from hatam.bench.theory import CHECKS, formulas
from hatam.bench.theory.check import chosen

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "results/theory"
rates = st.floats(0.0, 0.99)


@given(beta_c=rates, seed=st.integers(0, 10**6))
def test_the_bend_in_one_buffer(beta_c: float, seed: int) -> None:
    gradients = torch.randn(30, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    torch.testing.assert_close(formulas.bend_in_one_buffer(gradients, beta_c), formulas.bend(gradients, beta_c))


@given(omega=st.floats(0.05, math.pi), beta_c=st.floats(0.0, 0.95))
def test_the_transfer_function_is_what_an_oscillation_meets(omega: float, beta_c: float) -> None:
    """The correction of e^{iωt}, after what came of its start has died away."""
    t = torch.arange(600, dtype=torch.float64)
    wave = torch.stack([(omega * t).cos(), (omega * t).sin()], dim=1)
    c = formulas.bend(wave, beta_c)[-1]
    found = complex(*c.tolist()) / complex(*wave[-1].tolist())
    assert found == pytest.approx(formulas.transfer(omega, beta_c), abs=1e-9)


def grows(lam: float, beta1: float, beta_c: float, gain: float) -> bool:
    """Adam's update with a frozen denominator of 1 and the correction, lr = 1, on λ w² / 2."""
    w, m, e = 1.0, 0.0, 0.0
    for _ in range(4000):
        g = lam * w
        c = (1 - beta_c) * (g - e)
        e += c
        m = beta1 * m + (1 - beta1) * (g + gain * c)
        w -= m
        if abs(w) > 1e6:
            return True
    return False


@pytest.mark.parametrize("gain", [0.0, 1.0, 10.0])
@pytest.mark.parametrize(("beta1", "beta_c"), [(0.9, 0.9), (0.9, 0.5), (0.5, 0.9), (0.0, 0.9)])
def test_the_edge_of_stability_is_where_oscillations_begin_to_grow(beta1: float, beta_c: float, gain: float) -> None:
    edge = formulas.edge_of_stability(beta1, beta_c, gain)
    assert not grows(0.98 * edge, beta1, beta_c, gain)
    assert grows(1.02 * edge, beta1, beta_c, gain)


@pytest.mark.parametrize("beta_c", [0.0, 0.5, 0.9, 0.97])
def test_the_ceiling_is_where_the_probe_begins_to_grow(beta_c: float) -> None:
    """e of a quadratic, z at rest beside its minimum."""
    for factor, unstable in ((0.98, False), (1.02, True)):
        e = 0.0
        for _ in range(6000):
            e = beta_c * e + (1 - beta_c) * (1.0 - factor * formulas.ceiling(beta_c) * e)
        assert (abs(e) > 1e6) is unstable


@given(noise=st.floats(0.01, 5.0), gamma=st.floats(0.0, 5.0), beta_c=st.floats(0.0, 0.95))
def test_the_fixed_point_is_one(noise: float, gamma: float, beta_c: float) -> None:
    s = formulas.fixed_point(noise, gamma, beta_c)
    threshold = math.sqrt((1 + beta_c) / 2) / max(gamma * (1 - beta_c), 1e-12)
    assert math.isinf(s) is (noise >= threshold)
    if not math.isinf(s):
        assert noise * formulas.inflation(s, gamma, beta_c) == pytest.approx(s, rel=1e-6)


def test_inflation_is_that_of_white_noise() -> None:
    g = torch.randn(200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    corrected = g + 4.0 * formulas.bend(g[:, None], 0.9)[:, 0]
    assert float(corrected.std() / g.std()) == pytest.approx(formulas.inflation(4.0, 1.0, 0.9), rel=0.01)


# The page -----------------------------------------------------------------------------------------------------------


def runs(name: str, **values: Any) -> list[dict[str, Any]]:
    found = json.loads((RECORDS / f"{name}.json").read_text(encoding="utf-8"))["runs"]
    return chosen(found, **values)


@pytest.mark.parametrize("name", CHECKS)
def test_the_page_has_the_records(name: str) -> None:
    """Each table to the letter, each with five seeds, each with its figure."""
    page = (ROOT / "docs/theory.md").read_text(encoding="utf-8")
    found = runs(name)
    assert report.replace_between(page, name, CHECKS[name].table(found)) == page
    assert {run["seed"] for run in found} == set(range(5))
    assert f"figures/theory-{name}.svg" in page or name == "exchange"


def mean(found: list[dict[str, Any]], key: str) -> float:
    return fmean(run[key] for run in found)


def test_what_the_page_claims() -> None:
    """The words between the tables, each held against its record."""
    assert max(run["bend_error"] for run in runs("identity")) < 1e-14
    slopes = {case: mean(runs("damping", case=case), "slope") for case in ("oscillating", "oscillating, S = 1")}
    assert slopes["oscillating"] == pytest.approx(2, abs=0.1)
    assert slopes["oscillating, S = 1"] == pytest.approx(1, abs=0.01)
    assert mean(runs("damping", case="rotated: the Hessian is not diagonal"), "damped") < 0.5
    for batch in (32, 128, 512):
        assert fmean(1 - at[0] ** 2 for run in runs("quasi-newton", batch=batch) for at in run["cosines"]) > 0.5
    assert min(at["within"][0] for run in runs("proxy") for at in run["ranks"]) > 0.5
    assert max(run["error"] for run in runs("exchange")) < 1e-14
    for run in runs("edge"):
        assert fmean(run["effective"][10:]) == pytest.approx(38, rel=0.05)
    held = [fmean(run["ratios"][10:16]) for run in runs("ceiling", gamma=0.1, beta_c=0.9)]
    rising = [fmean(run["ratios"][10:16]) for run in runs("ceiling", gamma=0.0)]
    assert 1 < fmean(held) < 3 <= fmean(rising)
    assert max(run["error"] for run in runs("feedback", form="published")) < 0.1
    assert min(run["max_s"] for run in runs("feedback", form="published", gamma=1.0)) > 100


def test_a_probe_halves_the_trace_at_equal_loss() -> None:
    from hatam.bench.theory.probing import at_loss

    traces = {
        contender: [at_loss(run["curve"], 0.25) for run in runs("trace", contender=contender)]
        for contender in ("adamw", "sam", "hatam-relative:gamma=0.12")
    }
    for contender in ("sam", "hatam-relative:gamma=0.12"):
        assert all(
            x is not None and y is not None and x < 0.6 * y
            for x, y in zip(traces[contender], traces["adamw"], strict=True)
        )


# The command --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["identity", "exchange"])
def test_the_command_measures_resumes_and_draws(name: str, tmp_path: Path) -> None:
    command = ["theory", name, "--jobs", "1", "--results", str(tmp_path)]
    assert CliRunner().invoke(app, [*command, "--seeds", "1"]).exit_code == 0
    record = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))
    one = record["runs"][0]
    one["mark"] = 1
    (tmp_path / f"{name}.json").write_text(json.dumps(record), encoding="utf-8")
    done = CliRunner().invoke(app, [*command, "--seeds", "2"])
    assert done.exit_code == 0, done.output
    again = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))["runs"]
    assert one in again  # not done again
    assert len(again) == 2 * len(record["runs"])
    assert CHECKS[name].title in done.output
    assert "<svg" in (tmp_path / f"theory-{name}.svg").read_text(encoding="utf-8")
    lost = [run for run in again if run != one]
    (tmp_path / f"{name}.json").write_text(json.dumps({**record, "runs": lost}), encoding="utf-8")
    assert CliRunner().invoke(app, [*command, "--seeds", "1"]).exit_code == 0
    whole = json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))["runs"]
    assert len(whole) == len(again)  # those of more seeds than are wanted now are kept


def test_the_command_refuses(tmp_path: Path) -> None:
    render = CliRunner().invoke(app, ["theory", "damping", "--render", "--results", str(tmp_path)])
    assert "damping.json lacks 8 runs" in str(render.exception)
    unknown = CliRunner().invoke(app, ["theory", "dampin", "--results", str(tmp_path)])
    assert "Did you mean 'damping'" in str(unknown.exception)


@pytest.mark.parametrize(
    ("name", "job"),
    [
        ("damping", {"case": "overshort", "seed": 0}),
        ("edge", {"optimizer": "HATAM, raw, γ = 10", "lr": 1e-3, "seed": 0, "steps": 20}),
        ("trace", {"contender": "hatam-relative:gamma=0.12", "seed": 0, "steps": 20, "points": 2}),
    ],
)
def test_runs_that_take_long_run(name: str, job: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A few steps of each kind."""
    from hatam.bench.theory import linear

    monkeypatch.setitem(linear.CASES, "overshort", {"steps": 50, "window": 20})
    found = CHECKS[name].run(**job)
    values = torch.tensor([x for x in torch.utils._pytree.tree_leaves(found) if isinstance(x, float)])
    assert len(values) > 2
    assert values.isfinite().all()


def test_networks_on_the_way() -> None:
    """What the checks ask of a network in training, and that the Hessian's diagonal and Fisher's are what they say."""
    from hatam.bench.theory import curvature, edge
    from hatam.bench.theory.network import Training, denominators, modulators

    training = Training(curvature.adamw, seed=0, steps=6, batch=16)
    assert list(training.run(every=3)) == [3, 6]
    h = denominators(training.optimizer, training.params)
    assert all(float(s.max()) <= 1.0 for s in modulators(h, 1.0))
    fisher = curvature.fisher_diagonal(training)
    assert fisher.shape == (sum(p.numel() for p in training.params),)
    assert bool((fisher >= 0).all())
    assert edge.displacement_scale(training, 0.0).shape == fisher.shape
    product = training.hessian().times(torch.ones_like(fisher))
    assert product.isfinite().all()
