"""The report: what it says, what it bears, and that the same records give the same bytes."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_records import LABELS, put, rich
from typer.testing import CliRunner

from hatam.bench import records, report
from hatam.bench.cli import app
from hatam.bench.contenders import CONTENDERS
from hatam.bench.report import compared, figures, load, overall, sections, sensitivity, style, summary, tabulate
from hatam.bench.stats import p_text, paired
from hatam.bench.tasks import all_tasks


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report on the rich records."""
    folder = tmp_path_factory.mktemp("report")
    report.write(rich(folder / "records"), folder / "out")
    return folder


def comparisons_of(root: Path) -> list[compared.Comparison]:
    return compared.comparisons(load.find(root).entries)[0]


def table_of(root: Path) -> dict[str, dict[str, str]]:
    """The first table of results: column by label."""
    found = comparisons_of(root)
    table = tabulate.results(found[0], tabulate.corrected(found), sections.sources([], ""))
    return {row[0]: dict(zip(table.columns, row, strict=True)) for row in table.rows}


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_same_records_give_the_same_bytes(made: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(made / "records"), "--out", str(made / "again")])
    assert done.exit_code == 0
    assert "damaged and left out: study/mnist1d-mlp/adamw-0123456789/<b>/0.json" in done.output
    assert digests(made / "again") == digests(made / "out")


def test_the_page_is_whole_and_small(made: Path) -> None:
    page = (made / "out" / "index.html").read_text(encoding="utf-8")
    assert len(page.encode()) < 3e6
    assert str(made) not in page
    assert not re.search(r"(src|srcset|url\()\s*=?\s*[\"']?(https?:)?//", page)
    assert page.count("<table>") == page.count("Markdown<span") > 5
    for figure in re.findall(r'href="(figures/[^"]+|tables/[^"]+)"', page):
        assert (made / "out" / figure).stat().st_size > 50
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'"#([^"]+)"|\(#([^)]+)\)', page)) <= {(each, "") for each in ids} | {("", e) for e in ids}


def test_hostile_names_are_text(made: Path) -> None:
    page = (made / "out" / "index.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<i>shear" not in page
    assert "<b>" not in page
    for path in (made / "out").rglob("*.svg"):
        ET.fromstring(path.read_text(encoding="utf-8"))
    assert all("<script" not in path.read_text(encoding="utf-8") for path in (made / "out").rglob("*.md"))


def test_what_was_left_out_is_said(made: Path) -> None:
    page = (made / "out" / "index.html").read_text(encoding="utf-8")
    assert "Other JSON files, left out: 1." in page
    assert "Damaged records, left out: 1:" in page
    assert "adamw-0123456789/&lt;b&gt;/0.json" in page
    assert "is not known to this version" in page
    assert "of them 85 final and 24 of tuning" in page


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"schema": 0}, "schema 0"),
        ({"result": {}}, "status|test"),
        ({"result": {"status": "ok", "test": "high"}}, "'high'"),
        ({"run": {"seed": 0}}, "task"),
        ({"curve": [{"step": "x"}]}, "'x'"),
        ({"curve": None}, "NoneType"),
    ],
)
def test_a_damaged_record_is_named_with_what_is_wrong(tmp_path: Path, change: dict[str, object], what: str) -> None:
    path = put(tmp_path, "adamw", 0, 1.0)
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    found = load.find(tmp_path)
    assert not found.entries
    [(name, why)] = found.damaged
    assert name == path.relative_to(tmp_path).as_posix()
    assert re.search(what, why)


def test_numbers_of_the_results(tmp_path: Path) -> None:
    for seed, (base, own) in enumerate([(70.0, 72.0), (71.0, 72.0), (72.0, 75.0)]):
        put(tmp_path, "adamw", seed, base)
        put(tmp_path, "sam", seed, own, time={"step_median_s": 0.025})
    row = table_of(tmp_path)["sam"]
    assert (row["n"], row["mean"], row["time/step"], row["gradients/step"]) == ("3", "73.00", "2.50", "2.00")
    assert row["− AdamW"] == "+2.00 [-0.48, +4.48]"  # Student's t with 2 degrees of freedom: 2 ± 4.303 / sqrt(3)
    assert row["p"] == row["p, Holm"] == "0.074"


def test_the_short_table_goes_into_a_document(tmp_path: Path) -> None:
    """A task that was run for two numbers of steps has two; a damaged record is named."""
    for seed in (0, 1):
        for label, steps in (("adamw", 100), ("sam", 100), ("adamw", 300)):
            put(tmp_path / "runs", label, seed, 70.0 + seed, steps=steps, time={"step_median_s": 0.01})
    put(tmp_path / "runs", "k-sam", 0, 1.0).write_text("{")
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- mnist1d-mlp:start -->\n<!-- mnist1d-mlp:end -->\nafter")
    arguments = ["table", str(tmp_path / "runs"), "--update", str(page), "--plots", str(tmp_path / "plots")]
    assert "damaged and left out: mnist1d-mlp/k-sam" in CliRunner().invoke(app, arguments).output
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n<!--")
    assert text.endswith("-->\nafter")
    assert re.findall(r"mnist1d-mlp \((.*)\)", text) == ["100 steps", "300 steps"]
    assert "| adamw | 2 | 70.50 ± 6.35 |  |  | 1.00 | 1.00 | " in text
    assert len(list((tmp_path / "plots").glob("*.png"))) == 4


def test_records_with_nothing_but_the_needful(tmp_path: Path) -> None:
    for seed in range(2):
        for label in ("adamw", "sam"):
            path = put(tmp_path, label, seed, 1.0 + seed, time={"step_median_s": None})
            record = json.loads(path.read_text())
            del record["time"], record["gradients_per_step"], record["result"]["hessian_lambda_max"]
            path.write_text(json.dumps({**record, "curve": []}))
    row = table_of(tmp_path)["sam"]
    assert (row["mean"], row["time/step"], row["gradients/step"], row["λ_max"]) == ("1.5000", "–", "–", "–")
    report.write(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("measured", [None, 7.0])  # done together, or alone on a busy machine
def test_a_studys_run_has_the_studys_time(tmp_path: Path, measured: float | None) -> None:
    for label, steps in (("adamw", 100), ("adamw", 300), ("sam", 100)):
        put(tmp_path / "full" / "records", label, 0, 1.0, time={"step_median_s": measured}, steps=steps)
    (tmp_path / "full" / "timing").mkdir()
    timing = {"task": "mnist1d-mlp", "step_s": {"adamw": 0.5, "sam": 1.5}}
    (tmp_path / "full" / "timing" / "mnist1d-mlp.json").write_text(json.dumps(timing))
    assert [each.budget for each in comparisons_of(tmp_path)] == ["equal steps", "equal time"]
    for each in comparisons_of(tmp_path):
        assert each.relative_time(next(c for c in each.contestants if c.label == "sam")) == 3.0


def test_a_run_without_a_score_counts_as_diverged_and_is_last(tmp_path: Path) -> None:
    for seed in range(3):
        put(tmp_path, "adamw", seed, 70.0)
        lost = {"status": "diverged", "test": math.nan} if seed == 0 else {}
        put(tmp_path, "sam", seed, 80.0, result=lost)
    row = table_of(tmp_path)["sam"]
    assert (row["n"], row["mean"], row["diverged"]) == ("2", "80.00", "1")
    comparison = comparisons_of(tmp_path)
    assert summary.mean_ranks([compared.shared(comparison[0], ["adamw", "sam"])]).tolist() == [1.0, 2.0]
    beside = np.array([[0.1], [0.2], [0.3], [3e6]])  # which takes no digits from the others
    assert summary.mean_ranks([beside]).tolist() == [4.0, 3.0, 2.0, 1.0]
    level = np.array([[90.96000099], [90.96000023], [90.97], [-np.inf]])  # equal but for float32's rounding
    assert summary.mean_ranks([level]).tolist() == [2.5, 2.5, 1.0, 4.0]
    table = tabulate.diverged(load.find(tmp_path).entries, "")
    assert ("sam", "mnist1d-mlp", "final", "3", "1") in table.rows


def test_lower_is_better_is_heeded_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = dataclasses.replace(all_tasks()["mnist1d-mlp"], metric_name="bits per byte", higher_is_better=False)
    monkeypatch.setitem(all_tasks(), "mnist1d-mlp", task)
    for seed in range(3):
        for label, score in (("adamw", 2.0), ("sam", 1.0)):
            shifts = {"noise": {"1.0": score * 2, "2.0": score * 3}}
            put(tmp_path, label, seed, score + seed / 10, result={"shifts": shifts})
    for lr, score in ((0.1, 3.0), (0.1, 2.0), (0.2, 2.5)):
        put(tmp_path, "adamw", 7, score, purpose="tune", options={"lr": lr, "eps": score})
    look = style.looks(["adamw", "sam"])
    [comparison] = comparisons_of(tmp_path)
    nothing = sections.sources([], "")
    assert "sam: 1.00 [1.00, 1.00]; adamw: 2.00" in overall.ranks([comparison], look, nothing).alt
    assert "sam: cheapest on 100%" in overall.profiles([comparison], look, nothing).alt
    assert "(lower is better)" in figures.curves(comparison, look, nothing).caption
    assert [row[:2] for row in tabulate.corruption(comparison, nothing).rows] == [("adamw", "100.0"), ("sam", "50.0")]
    put(tmp_path, "adamw", 7, 0.1, purpose="tune", options={"lr": 0.2}, result={"status": "diverged"})  # left out
    tune = [entry for entry in load.find(tmp_path).entries if entry.purpose == "tune"]
    assert "adamw: 2 at 0.1, 2.5 at 0.2" in sensitivity.figures(tune, look, "")[0].alt


def test_corruption_error_is_of_what_is_missing_to_100(tmp_path: Path) -> None:
    for label, score in (("adamw", 80.0), ("sam", 90.0)):
        shifts = {"noise": {"1.0": score, "2.0": score}, "shear": {"1.0": score - 20}}
        put(tmp_path, label, 0, score, result={"shifts": shifts})
    table = tabulate.corruption(comparisons_of(tmp_path)[0], sections.sources([], ""))
    assert table.rows[1] == ("sam", "62.5", "–", "50.0", "75.0")


def test_the_corruption_error_of_a_share_is_not_known(tmp_path: Path) -> None:
    for label, score in (("adamw", 0.8), ("sam", 0.9)):
        put(tmp_path, label, 0, score, result={"shifts": {"noise": {"1.0": score}}})
    table = tabulate.corruption(comparisons_of(tmp_path)[0], sections.sources([], ""))
    assert table.rows[1] == ("sam", "–", "–", "–")


def test_the_records_of_an_unknown_task_tell_its_metric(tmp_path: Path) -> None:
    told: dict[str, Any] = {"task": "own.py:TASK", "metric": {"name": "error", "higher_is_better": False}}
    for label, score in (("adamw", 1e-5), ("sam", 3e-5)):
        for seed in (0, 1):
            put(tmp_path, label, seed, score * (1 + seed), **told)
    [comparison] = comparisons_of(tmp_path)
    assert comparison.metric == "error (lower is better)"
    look = style.looks(["adamw", "sam"])
    assert "adamw: 1.00" in overall.ranks([comparison], look, sections.sources([], "")).alt
    assert comparison.format(comparison.contestants[0].score.mean) == "0.0000150"
    assert "unknown" not in "".join(sections.build(load.find(tmp_path), "r")[0].notes)


def test_a_page_runs_no_code_that_a_record_names(tmp_path: Path) -> None:
    file = tmp_path / "own.py"
    file.write_text("raise SystemExit(7)")
    put(tmp_path / "records", "adamw", 0, 70.0, task=f"{file}:TASK")
    command = sections.build(load.find(tmp_path / "records"), "r")[0].tables[0].sources.command
    assert "--contender adamw" in command


def test_of_runs_whose_code_has_changed_the_last_count(tmp_path: Path) -> None:
    for source, when, score in (("b" * 10, "2026-01-01", 50.0), ("a" * 10, "2026-01-02", 90.0)):
        for label in ("adamw", "sam"):
            put(tmp_path, label, 0, score, task="train", source=source, started=when)
    found, odd = compared.comparisons(load.find(tmp_path).entries)
    assert [(c.label, c.score.mean) for each in found for c in each.contestants] == [("adamw", 90.0), ("sam", 90.0)]
    assert "2 runs on train are left out" in odd[0]


def test_tuning_is_told_by_folder_and_by_settings(tmp_path: Path) -> None:
    """The same options at another length are no other setting; what a grid beside a study tried is no tuning."""
    for folder, gamma, steps in (("a", 1, 150), ("a", 1, 300), ("b", 2, 150)):
        put(tmp_path / folder, "hatam", 0, 70.0, options={"gamma": gamma}, steps=steps, purpose="tune")
    tables = tabulate.tuning(load.find(tmp_path).entries, "")
    assert [(table.title, table.rows[0][:3]) for table in tables] == [
        ("Cost of tuning on mnist1d-mlp (a)", ("hatam", "1", "2")),
        ("Cost of tuning on mnist1d-mlp (b)", ("hatam", "1", "1")),
    ]


def test_holm_counts_what_is_told_apart(tmp_path: Path) -> None:
    for seed in range(3):
        put(tmp_path, "adamw", seed, 70.0 + seed)
        for gamma in (1, 2):
            put(tmp_path, "hatam", seed, 72.0 + 1.5 * seed + gamma, options={"gamma": gamma})
    found = comparisons_of(tmp_path)
    p_values = tabulate.corrected(found)
    plain = {c.label: found[0].difference(c).p for c in found[0].contestants if c.label != "adamw"}
    assert len(plain) == len(p_values) == 2
    smallest = min(plain, key=lambda label: plain[label])
    assert min(p_values.values()) == pytest.approx(2 * plain[smallest])


def test_a_contender_has_its_own_sensitivity(made: Path) -> None:
    entries = [entry for entry in load.find(made / "records").entries if entry.purpose == "tune"]
    drawn = sensitivity.figures(entries, style.looks(["adamw", "hatam"]), "")
    assert [figure.title.split(":")[0] for figure in drawn] == [
        f"Sensitivity to {option}" for option in ("lr", "gamma", "modulator_cap")
    ]
    assert re.search(r"adamw: .*hatam: .*70 at", drawn[0].alt)
    assert "n = 24 settings" in drawn[0].caption
    assert "at default" in drawn[2].alt
    assert "at ∞" in drawn[2].alt


def test_settings_of_one_label_are_told_apart(tmp_path: Path) -> None:
    for gamma in (1, 2):
        put(tmp_path, "hatam", 0, 70.0 + gamma, options={"gamma": gamma})
    [comparison] = comparisons_of(tmp_path)
    assert sorted(c.score.mean for c in comparison.contestants) == [71.0, 72.0]
    assert all(re.fullmatch(r"hatam \[[0-9a-f]{10}\]", c.label) for c in comparison.contestants)
    assert "told apart" in sections.build(load.find(tmp_path), "r")[0].notes[0]


@pytest.mark.parametrize("task", ["digits", "tasks/own.py:TASK"])
def test_comparisons_in_two_folders_are_two(tmp_path: Path, task: str) -> None:
    for folder, gamma in (("a", 1), ("b", 2)):
        put(tmp_path / folder, "hatam", 0, 70.0 + gamma, task=task, options={"gamma": gamma})
    assert [[c.label for c in each.contestants] for each in comparisons_of(tmp_path)] == [["hatam"], ["hatam"]]


def test_runs_of_several_lengths_are_several_comparisons(tmp_path: Path) -> None:
    for label, steps in (("adamw", 100), ("adamw", 200), ("sam", 100), ("hatam", 100), ("hatam", 190)):
        put(tmp_path, label, 0, 70.0, steps=steps)
    steps = {each.budget: {c.label: c.runs[0].steps for c in each.contestants} for each in comparisons_of(tmp_path)}
    assert steps == {
        "100 steps": {"adamw": 100, "sam": 100, "hatam": 100},
        "190 steps": {"hatam": 190},
        "200 steps": {"adamw": 200},
    }


def test_equal_time_is_not_mixed_with_equal_steps(tmp_path: Path) -> None:
    """Where nobody has been run at both yet."""
    steps = {"adamw": 100, "sam": 100, "hatam": 190}
    for label, n in steps.items():
        put(tmp_path / "records", label, 0, 70.0, steps=n)
    times = {"task": "mnist1d-mlp", "step_s": {"adamw": 1.0, "sam": 2.0, "hatam": 200 / 190}}
    records.write(tmp_path / "timing" / "mnist1d-mlp.json", times)
    found = {each.budget: {c.label for c in each.contestants} for each in comparisons_of(tmp_path)}
    assert found == {"equal steps": {"adamw", "sam"}, "equal time": {"sam", "hatam"}}


def test_tuning_is_what_came_before_the_finals(tmp_path: Path) -> None:
    stages: dict[str, list[str]] = {"search-1": [], "sensitivity": [], "final": []}
    lost = {"result": {"status": "diverged"}}
    for i, stage in enumerate(("search-1", "search-1", "sensitivity", "", "final")):
        changed: dict[str, Any] = {"options": {"lr": i}, "purpose": "final" if stage == "final" else "tune"}
        path = put(tmp_path / "records", "hatam", 0, 70.0, steps=150, **changed, **(lost if i == 1 else {}))
        if stage:
            stages[stage].append(path.relative_to(tmp_path).as_posix())
    cell = {stage: {"settings": [{"records": names}]} for stage, names in stages.items()}
    content = {"task": "mnist1d-mlp", "contender": "hatam", "stages": cell}
    records.write(tmp_path / "cells" / "mnist1d-mlp" / "hatam-steps.json", content)
    tuned = [entry for entry in load.find(tmp_path).entries if entry.purpose == "tune"]
    assert sorted(entry.stage for entry in tuned) == ["search-1", "search-1", "sensitivity"]
    (table,) = tabulate.tuning(tuned, "")
    assert table.rows[0][:4] == ("hatam", "2", "2", "250")  # the curve of the one that diverged ends at step 100


def test_without_adamw_the_first_is_the_baseline(tmp_path: Path) -> None:
    for seed in range(3):
        put(tmp_path, "hatam:gamma=3", seed, 72.0 + seed / 9)
        put(tmp_path, "adamw:lr=0.1", seed, 70.0)
    (comparison,) = comparisons_of(tmp_path)
    assert report.columns(comparison)[3] == "− adamw:lr=0.1"
    assert [report.cells(comparison, c)[3] for c in comparison.contestants] == ["", "+2.11 [+1.84, +2.39]"]
    assert table_of(tmp_path)["hatam:gamma=3"]["− adamw:lr=0.1"] == "+2.11 [+1.84, +2.39]"


def test_the_command_makes_these_records(tmp_path: Path) -> None:
    put(tmp_path, "hatam", 3, 70.0, options={**CONTENDERS["hatam"].options, "gamma": 5.0, "modulator_cap": math.inf})
    command = sections.build(load.find(tmp_path), "r")[0].tables[0].sources.command
    assert "--contender hatam:gamma=5.0,modulator_cap=inf --seeds 1 --first-seed 3 --steps 100 --records r" in command


def test_nothing_at_all_still_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    report.write(tmp_path / "records", tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert page.count('class="missing"') == len(sections.build(load.Found(), "r"))
    assert "hatam compare --task" in page
    with pytest.raises(ValueError, match="hatam compare"):
        report.write(tmp_path / "none", tmp_path / "out")


def test_names_keep_their_distance_and_their_order() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 12):
        wanted = rng.uniform(0, 10, n)
        places = np.array(style.spread(list(wanted), gap=0.8, top=10.0))
        order = np.argsort(wanted)
        assert (np.diff(places[order]) >= 0.8 - 1e-9).all()
        assert places.min() >= 0
        assert places.max() <= 10
    assert style.spread([1.0, 5.0], gap=0.8, top=10.0) == [1.0, 5.0]
    assert style.spread([5.0, 5.0], gap=2.0, top=10.0) == [4.0, 6.0]


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def test_colours_show_on_both_pages_and_looks_differ() -> None:
    css = (Path(report.__file__).parent / "page.css").read_text(encoding="utf-8")
    papers = [luminance(colour) for colour in re.findall(r"--paper: (#\w{6})", css)]
    assert len(papers) == 2
    for colour in style.COLOURS:
        for paper in papers:
            low, high = sorted((luminance(colour), paper))
            assert (high + 0.05) / (low + 0.05) >= 3
    looks = style.looks(str(i) for i in range(72))
    assert len({(look.colour, look.marker, look.stroke) for look in looks.values()}) == 72
    twins = style.looks(["a" * 15 + end + "b" * 15 for end in "xy"])
    assert len({look.name for look in twins.values()}) == 2


def test_holm_and_resampling_against_known_values() -> None:
    assert summary.holm([0.01, 0.02, 0.9]) == pytest.approx([0.03, 0.04, 0.9])
    assert summary.holm([0.6, 0.7]) == [1.0, 1.0]
    table = np.array([[1.0, 2.0, 3.0, 4.0] * 25])
    low, high = summary.resampled(lambda drawn: drawn[0].mean(axis=-1), [table])
    assert low[0] == pytest.approx(2.5 - 1.96 * math.sqrt(1.25 / 100), abs=0.03)
    assert high[0] == pytest.approx(2.5 + 1.96 * math.sqrt(1.25 / 100), abs=0.03)


def test_every_label_of_the_page_is_in_its_alternatives(made: Path) -> None:
    found = comparisons_of(made / "records")
    assert len(found) == 3
    for comparison in found:
        labels = [c.label for c in comparison.contestants]
        figure = figures.curves(comparison, style.looks(labels), sections.sources([], ""))
        assert set(LABELS) <= set(labels)
        assert all(label in figure.alt for label in LABELS)


def test_in_short_those_that_survived_are_not_compared(tmp_path: Path) -> None:
    lost = {"status": "diverged", "validation": math.nan, "test": math.nan}
    for seed in range(4):
        for label in ("adamw", "sam", "hatam"):
            put(
                tmp_path,
                label,
                seed,
                0.5 + 0.1 * seed,
                "bytes",
                result=lost if seed > 1 and label == "hatam" else {},
            )
    row = report.brief(tmp_path).splitlines()[-1].strip("| ").split(" | ")
    assert row[0] == "bytes ↓, 4"
    assert row[3].endswith("(2 diverged)")
    assert not "".join(row[4:]).strip(" |")


def test_a_study_in_short(tmp_path: Path) -> None:
    """Three contenders at two budgets; a lower error is better on bytes, and p-values are corrected over tasks."""
    root = tmp_path / "study" / "records"
    for task, sign in (("mnist1d-mlp", 1), ("bytes", -1)):
        for seed in range(6):
            for label, gain in (("adamw", 0.0), ("sam", 3.0), ("hatam", 2.0 + 0.02 * seed), ("lion", 9.0)):
                for steps in (100, 200) if label not in ("sam", "lion") else (100,):
                    put(root, label, seed, 70 + sign * gain + 0.1 * seed, task=task, steps=steps)
    put(root, "adamw", 0, 50.0, task="digits")  # nobody to compare with
    for task in ("mnist1d-mlp", "bytes"):
        times = {"adamw": 1.0, "sam": 2.0, "hatam": 1.0, "lion": 1.0}
        records.write(tmp_path / "study" / "timing" / f"{task}.json", {"task": task, "step_s": times})
    text = report.brief(tmp_path / "study")
    steps, _, time = text.partition("At equal time:")
    rows, others = (
        [line.strip("| ").split(" | ") for line in part.strip().splitlines()[-2:]] for part in (steps, time)
    )
    assert [row[0] for row in others] == [row[0] for row in rows]
    assert [row[0] for row in rows] == ["mnist1d-mlp ↑, 6", "bytes ↓, 6"]
    assert rows[0][2].startswith("73.25 ± ")
    assert rows[0][4].startswith("+2.05 [")
    assert rows[1][4].startswith("-2.05 [")
    assert rows[0][6].startswith("-0.95 [")
    difference = paired({s: 2 + 0.02 * s for s in range(6)}, dict.fromkeys(range(6), 0.0))
    assert rows[0][5] == p_text(min(1.0, 2 * difference.p))
    assert "lion" not in text
    labels = {
        each.budget: {c.label for c in each.contestants} for each in comparisons_of(tmp_path) if each.task != "digits"
    }
    assert labels["equal steps"] - labels["equal time"] == {"lion"}  # not run there yet; SAM sets the pace
    assert "digits" not in text
    with pytest.raises(ValueError, match="is not a folder"):
        report.brief(tmp_path / "nowhere")


def test_folders_in_short_are_told_apart(tmp_path: Path) -> None:
    for seed in range(6):
        for folder, gain in (("a", 1.0), ("b", 5.0)):
            put(tmp_path / folder, "adamw", seed, 70.0)
            put(tmp_path / folder, "hatam", seed, 70.0 + gain + 0.01 * seed)
    first, second = report.brief(tmp_path, ("adamw", "hatam")).split("\n\n")[1::2]
    assert report.brief(tmp_path / "a", ("adamw", "hatam")) == first
    assert report.brief(tmp_path / "b", ("adamw", "hatam")) == second
