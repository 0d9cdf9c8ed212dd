"""The table model against numbers computed by hand, and what is shown of it."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hatam.bench.report import page, plots, results, tables
from hatam.bench.stats import holm

SCORES = {"adamw": [90.0, 91.0, 92.0, 90.5], "hatam": [91.0, 92.5, 92.5, 92.0], "sam": [90.0, 90.5, math.nan, 91.0]}


def frame(scores: dict[str, list[float]] = SCORES, **changed: Any) -> pd.DataFrame:
    """Final runs as a study records them."""
    rows = [
        {
            "key": f"{label}{seed}",
            "task": "t",
            "label": label,
            "contender": label,
            "options": "{}",
            "seed": seed,
            "steps": 100,
            "comparison": "steps",
            "stage": "final",
            "metric": "accuracy, %",
            "higher_is_better": True,
            "status": "ok" if math.isfinite(score) else "diverged",
            "validation": score,
            "test": score,
            "curve": json.dumps([[50, 1.0, 80.0], [100, 0.5, 85.0 + seed]]),
            "shifts": json.dumps({"noise": {"1": score - 10, "2": score - 20}}),
            "lambda_max": 4.0 if label == "adamw" else 2.0,
            "trace": 9.0,
            "step_s": 0.002 if label == "sam" else 0.001,
            "gradients_per_step": 2.0 if label == "sam" else 1.0,
            **changed,
        }
        for label, each in scores.items()
        for seed, score in enumerate(each)
    ]
    return pd.DataFrame(rows)


def test_numbers_of_the_summary() -> None:
    found = tables.summary(frame()).set_index("label")
    own, base = np.array(SCORES["hatam"]), np.array(SCORES["adamw"])
    assert list(found.index) == ["adamw", "sam", "hatam"]
    hatam = found.loc["hatam"]
    assert hatam["mean"] == pytest.approx(own.mean())
    assert hatam["high"] - hatam["mean"] == pytest.approx(stats.t.ppf(0.975, 3) * own.std(ddof=1) / 2)
    assert hatam["difference"] == pytest.approx((own - base).mean())
    assert hatam["p"] == pytest.approx(stats.ttest_rel(own, base).pvalue)
    assert (hatam["lambda_max"], hatam["gradients"], hatam["time"]) == (2.0, 1.0, 1.0)
    assert found.loc["sam", ["n", "diverged", "gradients", "time"]].tolist() == [3, 1, 2.0, 2.0]
    assert math.isnan(found.loc["sam", "difference"])  # a difference of those that survived would flatter
    assert math.isnan(found.loc["adamw", "p"])


def test_p_values_are_corrected_over_the_tasks_of_a_comparison() -> None:
    parts = [
        frame({"adamw": SCORES["adamw"], "hatam": [x + d for x in SCORES["hatam"]]}, task=str(i), comparison=comparison)
        for comparison in ("steps", "gradients")
        for i, d in enumerate((0.0, 1.0, -1.0))
    ]
    found = tables.summary(pd.concat(parts))
    own = found[(found["label"] == "hatam") & (found["comparison"] == "steps")]
    assert list(own["holm"]) == pytest.approx(holm(list(own["p"])))
    assert (own["holm"] >= own["p"]).all()
    assert found["holm"].notna().sum() == 6


def test_corruption_is_relative_to_the_baseline() -> None:
    found = tables.summary(frame({"adamw": [90.0, 90.0], "hatam": [92.0, 92.0]})).set_index("label")
    assert found.loc["hatam", "corruption"] == pytest.approx((18 + 28) / (20 + 30))
    assert found.loc["adamw", "corruption"] == 1
    lower = frame({"adamw": [2.0, 2.0], "hatam": [1.0, 1.0]}, higher_is_better=False, shifts='{"noise": {"1": 3.0}}')
    assert tables.summary(lower).set_index("label").loc["hatam", "corruption"] == 1
    assert tables.summary(frame(shifts=None))["corruption"].isna().all()


def test_tuning_runs_do_not_count() -> None:
    both = pd.concat([frame(), frame({"adamw": [1.0, 2.0]}, stage="select")])
    pd.testing.assert_frame_equal(tables.summary(both), tables.summary(frame()))


@pytest.mark.parametrize("higher", [True, False])
def test_wins_and_ranks_heed_the_direction(higher: bool) -> None:
    scores = {"adamw": [2.0, 2.1, 1.9, 2.0], "hatam": [3.0, 3.11, 2.9, 3.0], "sam": [1.0, 1.12, 0.9, 1.0]}
    rows = tables.summary(frame(scores, higher_is_better=higher))
    assert tables.wins(rows, "steps", "hatam", 0.01) == ((1, 0) if higher else (0, 1))
    assert tables.wins(rows, "steps", "sam", 0.01) == ((0, 1) if higher else (1, 0))
    assert tables.mean_ranks(rows) == ({"adamw": 2, "hatam": 1 if higher else 3, "sam": 3 if higher else 1}, 1)


def test_ranks_are_over_the_tasks_of_all() -> None:
    missed = frame({"adamw": [5.0, 6.0], "hatam": [1.0, 3.0]}, task="u")
    one = tables.mean_ranks(tables.summary(frame()))
    assert tables.mean_ranks(tables.summary(pd.concat([frame(), missed]))) == one
    assert one == ({"adamw": 2, "hatam": 1, "sam": 3}, 1)


def test_the_comparison_as_text() -> None:
    shown = tables.compared(tables.summary(frame()))
    assert list(shown.columns) == ["contender", "n", "test", "− adamw", "p", "grad.", "time", "λ_max"]
    assert list(shown["contender"]) == ["adamw", "sam (1 diverged)", "hatam"]
    assert shown["− adamw"][2] == "+1.12 ± 0.76"
    text = tables.markdown(shown)
    assert text.splitlines()[1] == "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    lean = frame().drop(columns=["lambda_max", "shifts"]).assign(gradients_per_step=math.nan)
    assert "grad." not in tables.compared(tables.summary(lean))


def test_a_study_as_a_page(tmp_path: Path) -> None:
    both = pd.concat([frame(task=task, comparison=c) for task in "ab" for c in ("steps", "gradients")])
    times = pd.DataFrame({"task": "a", "contender": ["adamw", "sam", "hatam"], "ratio": [1.0, 2.1, 1.04]})
    text = results.render(both, times, tmp_path, "figures")
    assert text.count("| a ↑, 4 | 90.88 ± 1.36 | **") + text.count("| a ↑, 4 | 90.88 ± 1.36 | +1.12 ± 0.76 |") == 2
    assert "Final runs: 48, of which 4 diverged." in text
    row = next(line for line in text.splitlines() if line.startswith("| hatam |"))
    assert row.endswith("| 1.04 |")
    assert "| 0.500 |" in row  # λ_max relative to AdamW's
    for name in re.findall(r"\(figures/(.*?)\)", text):
        assert (tmp_path / name).read_text(encoding="utf-8").count("<svg") == 1


def test_the_same_records_give_the_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        page.write(frame(), "records", tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert {"index.html", "summary.csv"} < set(files)
    assert all((tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)


def test_a_page_shows_hostile_names_as_text(tmp_path: Path) -> None:
    hostile = '<script>alert(1)</script>"$x$|&‮'
    records = frame({"adamw": [1.0, 2.0], hostile: [2.0, 2.5]}, task=hostile, metric=hostile)
    html = page.write(records, hostile, tmp_path).read_text(encoding="utf-8")
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "‮" not in html


def test_no_final_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no final run; make some with 'hatam compare"):
        page.write(frame(stage="select"), "records", tmp_path)


def test_figures_leave_out_what_is_not_there(tmp_path: Path) -> None:
    assert plots.curves(frame(curve="[]"), tmp_path / "c") is None
    assert plots.cost(frame(step_s=math.nan), tmp_path / "c") is None
    assert os.listdir(tmp_path) == []


def test_holm_against_known_values() -> None:
    assert holm([0.01, 0.04, 0.03, math.nan]) == pytest.approx([0.04, 0.09, 0.09, 1.0])
