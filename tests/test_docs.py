"""The tables of the docs are those of the committed records, to the letter, and their snippets run."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hatam.bench import report
from hatam.bench.tasks import all_tasks

ROOT = Path(__file__).resolve().parent.parent


def of_record(name: str) -> Callable[[Any], str]:
    """The table that a script draws from its one record."""
    record = ROOT / f"results/{name}.json"
    return lambda script: script.table(json.loads(record.read_text(encoding="utf-8")))


# The marker in the page, the script in benchmarks/, and how that draws the table.
TABLES: dict[str, tuple[str, Callable[[Any], str]]] = {
    "step-cost": ("step_cost", of_record("step_cost/step_cost")),
    "training-cost": ("training_cost", of_record("step_cost/training_cost")),
    "host-time": ("host_time", of_record("step_cost/host_time")),
    "small-state": ("small_state", lambda script: script.table(ROOT / "results/small_state", 8)),
    "gpu": ("gpu_table", lambda script: script.text()),
}


def test_telemetry(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The table of the page, and its snippet."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module("telemetry")
    page = (ROOT / "docs/telemetry.md").read_text(encoding="utf-8")
    text = script.table(json.loads(script.COST.read_text(encoding="utf-8")))
    assert report.replace_between(page, "telemetry", text) == page
    exec(page.partition("```python\n")[2].partition("```")[0], {})
    assert "loss_at_z" in capsys.readouterr().out


@pytest.mark.parametrize("marker", TABLES)
def test_speed_tables(marker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    name, draw = TABLES[marker]
    page = (ROOT / "docs/speed.md").read_text(encoding="utf-8")
    assert report.replace_between(page, marker, draw(importlib.import_module(name))) == page


def test_decisions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    found = importlib.import_module("screened").pages()
    found["docs/decisions.md", "travelled"] = importlib.import_module("travelled").table()
    for (name, marker), text in found.items():
        page = (ROOT / name).read_text(encoding="utf-8")
        assert report.replace_between(page, marker, text) == page


def test_compatibility(monkeypatch: pytest.MonkeyPatch) -> None:
    """The record has what the tests are marked for, no more and no less, and nothing failed."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module("compatibility")
    record = json.loads(script.RECORD.read_text(encoding="utf-8"))
    page = (ROOT / "docs/compatibility.md").read_text(encoding="utf-8")
    for marker, text in (("compatibility", script.table(record)), ("conformance", script.conformance())):
        assert report.replace_between(page, marker, text) == page
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py")]
    marks = {": ".join(mark) for text in sources for mark in re.findall(r'mark\.compatible\("(.+)", "(.+)"\)', text)}
    assert record["outcomes"].keys() == marks
    assert all(counts["failed"] == 0 for counts in record["outcomes"].values())


def test_task_ranges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module("task_ranges")
    page = (ROOT / "docs/tasks.md").read_text(encoding="utf-8")
    assert report.replace_between(page, "task-ranges", script.table(script.read())) == page
    for name in all_tasks():
        assert name.startswith("cifar") or f"| {name} |" in page or (name in script.LARGER and f"| `{name}` |" in page)


@pytest.mark.parametrize("marker", ["larger", "gpu-study"])
def test_larger_networks(marker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no record is said not to have been run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    page, record = (ROOT / "docs/results.md").read_text(encoding="utf-8"), ROOT / "results/larger.json"
    if marker == "larger":
        runs = json.loads(record.read_text(encoding="utf-8"))["runs"] if record.exists() else {}
        text = importlib.import_module("larger").table(runs)
    else:
        text = importlib.import_module("gpu_table").study()
    assert report.replace_between(page, marker, text) == page


def test_the_snippet_of_the_readme_runs() -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec(page.partition("```python\n")[2].partition("```")[0], names)
    assert 0 <= names["accuracy"] <= 1


def test_the_snippets_of_the_migration_page_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One after the other, as a reader would; compiling itself is tested elsewhere."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    page = (ROOT / "docs/from_adamw.md").read_text(encoding="utf-8")
    snippets = [part.partition("```")[0] for part in page.split("```python\n")[1:]]
    names: dict[str, object] = {}
    for snippet in snippets:
        exec(snippet, names)
    assert len(snippets) == 7
    assert "3.weight (1, 16)" in capsys.readouterr().out


def test_what_batch_norm_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = importlib.import_module("batch_norm")
    page = (ROOT / "docs/from_adamw.md").read_text(encoding="utf-8")
    record = json.loads(script.RECORD.read_text(encoding="utf-8"))
    assert report.replace_between(page, "batch_norm", script.table(record)) == page
