"""The measurements around other optimizers: Schedule-Free, runs, the choice by validation, and what a step costs."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from schedulefree import SGDScheduleFree

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("around")


def test_schedule_free_is_the_authors(script: Any) -> None:
    """Around plain SGD with weight decay at z, and lr that changes."""
    start, targets = torch.randn(5, dtype=torch.float64), torch.randn(12, 5, dtype=torch.float64)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    own = script.ScheduleFree(torch.optim.SGD([ours], lr=0.1), 0.8)
    reference = SGDScheduleFree([theirs], lr=0.1, momentum=0.8)
    reference.train()
    for step, target in enumerate(targets):
        for p, optimizer in ((ours, own), (theirs, reference)):
            optimizer.param_groups[0]["lr"] = 0.1 * min(1, (step + 1) / 4)
            p.grad = (p - target).detach()
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    own.eval()
    reference.eval()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_every_variant_of_every_base_trains(script: Any) -> None:
    scores = {
        (base, variant): script.train(script.Run("mnist1d-conv", base, variant, 60, choices[0], lr, "validation", 1))
        for base, lr in (("SGD", 0.5), ("Lion", 0.002), ("Muon", 0.02), ("AdamW", 0.02))
        for variant, choices in script.VARIANTS.items()
    }
    assert all(score > 12 for score in scores.values()), scores  # of 100; chance is 10
    assert len(set(scores.values())) > len(scores) // 2
    broken = script.Run("mnist1d-conv", "SGD", "bare", 30, "cosine", 1e30, "validation", 1)
    assert math.isnan(script.train(broken))


def test_the_choice_is_the_best_by_the_mean_of_validation(script: Any) -> None:
    asked = script.runs("validation", {}, "bytes", "AdamW", "bare", 10)
    assert len(asked) == 10
    scores = {str(run): 3.0 + index for index, run in enumerate(asked)}
    scores[str(asked[7])] = 2.0  # bits a byte: lower is better
    scores[str(asked[3])] = math.nan
    judged = script.runs("test", scores, "bytes", "AdamW", "bare", 10)
    assert {(run.schedule, run.lr) for run in judged} == {(asked[7].schedule, asked[7].lr)}
    assert [run.seed for run in judged] == [32000, 32001, 32002, 32003]
    del scores[str(asked[0])]
    assert script.runs("test", scores, "bytes", "AdamW", "bare", 10) == []


def test_costs_are_measured_of_every_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("optax")
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    cost, threads = importlib.import_module("around_cost"), torch.get_num_threads()
    for name, value in {"TORCH_SHAPES": ("MLP, 1 k",), "JAX_SHAPES": ("MLP, 1 k",), "ROUNDS": 3}.items():
        monkeypatch.setattr(cost, name, value)
    try:
        record = cost.measure()
    finally:
        torch.set_num_threads(threads)
    assert all(len(seconds) == 3 and min(seconds) > 0 for seconds in record["seconds"]["MLP, 1 k"].values())
    rows = cost.text(record).splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(cost.PAIRS)
    assert all("–" in row for row in rows)
