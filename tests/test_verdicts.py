"""Verdicts on what HATAM was to reach: a run that was lost counts against it, wherever the others say it holds."""

from __future__ import annotations

import math
from pathlib import Path
from types import ModuleType

import pytest

from hatam.bench.report.compared import Comparison, comparisons
from hatam.bench.report.load import Entry

TASKS = ("digits", "mnist1d-mlp", "mnist1d-conv")


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import verdicts as found

    return found


def entry(task: str, label: str, seed: int, score: float, sharpness: float) -> Entry:
    """A run with this score on clean and shifted data; NaN where it diverged."""
    return Entry(
        group="",
        folder=f"{task}/{label}-0123456789",
        task=task,
        label=label,
        contender=label,
        options={},
        seed=seed,
        steps=10,
        purpose="final",
        diverged=math.isnan(score),
        validation=score,
        test=score,
        curve=((10, score),),
        shifts={"noise": {0.5: score, 1.0: score}},
        sharpness={"lambda_max": sharpness, "trace": sharpness},
        step_s=1.0,
        gradients_per_step=1.0,
    )


def made(lost: tuple[str, int] | None) -> list[Comparison]:
    """HATAM ahead of AdamW and SAM on every task, but for a run of one contender and seed that may be lost."""
    scores = {"adamw": 80.0, "sam": 81.0, "hatam": 85.0}
    entries = [
        entry(
            task,
            label,
            seed,
            math.nan if (label, seed) == lost and task == TASKS[-1] else score * (1 + 0.001 * seed),
            1 / score,
        )
        for task in TASKS
        for seed in range(4)
        for label, score in scores.items()
    ]
    return comparisons(entries)[0]


def test_a_lost_run_of_hatam_counts_against_it(verdicts: ModuleType) -> None:
    whole, lost = made(None), made(("hatam", 0))
    assert verdicts.under_shift(whole, "hatam").holds
    assert not verdicts.under_shift(lost, "hatam").holds
    assert "of 3 suites" in verdicts.under_shift(lost, "hatam").words
    assert verdicts.against(whole, "adamw", 0.01, "hatam", 3).holds
    assert not verdicts.against(lost, "adamw", 0.01, "hatam", 2).holds
    assert "below it on 3 (digits, mnist1d-conv, mnist1d-mlp) of 3" in verdicts.flatness(whole, "hatam").words
    assert "below it on 2 (digits, mnist1d-mlp) of 3" in verdicts.flatness(lost, "hatam").words


def test_a_task_without_a_score_of_sam_is_no_error(verdicts: ModuleType) -> None:
    entries = [
        entry("diabetes", label, seed, math.nan if label == "sam" else 0.5 + 0.01 * seed, 1.0)
        for label in ("adamw", "sam", "hatam")
        for seed in range(3)
    ]
    verdict = verdicts.beside_sam(comparisons(entries)[0], "hatam")
    assert not verdict.holds
    assert verdict.words.endswith("on none of 1")
