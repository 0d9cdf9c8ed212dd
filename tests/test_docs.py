"""The figures of the docs are those of the committed records, to the letter, their links lead somewhere, their snippets
run."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pandas as pd
import pytest
import torch

from hatam import modulators, testing
from hatam.bench import report
from hatam.bench.records import Store
from hatam.bench.report import results, tables
from hatam.bench.tasks import all_tasks

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in benchmarks/ can be imported."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def rendered() -> dict[tuple[str, str], str]:
    """By page and marker, what the commands of ``make readme`` fill in, but for the study's and the theory's."""
    names = ("common", "history", "step_cost", "gpu_speed", "compatibility", "around", "around_table", "around_cost")
    common, history, step_cost, gpu_speed, compatibility, around, around_table, around_cost = map(
        importlib.import_module, names
    )
    found = {(page, draw.__name__.replace("_", "-")): draw() for page, draws in history.PAGES.items() for draw in draws}
    costs = {part: common.read(f"results/step_cost/{part}.json") for part in step_cost.PARTS}
    for part, (_, draw) in step_cost.PARTS.items():
        found["docs/speed.md", part.replace("_", "-")] = draw(costs[part])
    found["README.md", "step-cost-brief"] = step_cost.brief(costs["step_cost"])
    found["docs/speed.md", "gpu"] = gpu_speed.text()
    found["docs/compatibility.md", "compatibility"] = compatibility.table(common.read(compatibility.RECORD))
    found["docs/around_your_optimizer.md", "around"] = around_table.table(around.read(ROOT / "results/around.json"))
    found["docs/around_your_optimizer.md", "around-cost"] = around_cost.text(common.read("results/around_cost.json"))
    found["docs/compatibility.md", "conformance"] = compatibility.conformance()
    return found


def test_figures() -> None:
    """Each is what its command makes of its record, and there is no other."""
    found = rendered()
    for (page, marker), text in found.items():
        assert report.replace_between(read(page), marker, text) == read(page), (page, marker)
    others = {"docs/theory.md", "docs/results.md"}
    marked = {(str(p.relative_to(ROOT)), m) for p in PAGES for m in re.findall(r"<!-- (\S+):start -->", p.read_text())}
    assert {(page, marker) for page, marker in marked if page not in others} == found.keys()


def test_the_history_counts_what_its_differences_say() -> None:
    """A difference counts by its sign, by which scores are better, and by its p."""
    history = importlib.import_module("history")
    good, bad = ({"mean": mean, "p": 0.01} for mean in (1.0, -1.0))
    assert [history.sign("digits", one) for one in (good, bad, {**good, "p": 0.05})] == [1, -1, 0]
    assert history.counts({"digits": good, "bytes": good, "minilm": {**good, "p": 1.0}}) == (1, 1, 3)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    """To files, and to headings, that are there."""
    for target in re.findall(r"\]\((?!https?:)([^)\s]*)\)", page.read_text(encoding="utf-8")):
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_compatibility() -> None:
    """The record has what the tests are marked for, no more and no less, and nothing failed."""
    record = json.loads(read("results/compatibility.json"))
    sources = [path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py")]
    marks = {": ".join(mark) for text in sources for mark in re.findall(r'mark\.compatible\("(.+)", "(.+)"\)', text)}
    assert record["outcomes"].keys() == marks
    assert all(counts["failed"] == 0 for counts in record["outcomes"].values())


def test_every_task_is_described() -> None:
    page = read("docs/tasks.md")
    assert all(f"| {name} |" in page or f"**{name}**" in page for name in all_tasks())


@pytest.mark.parametrize("marker", ["larger", "gpu-study"])
def test_larger_networks(marker: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no record is said not to have been run."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    page, record = (ROOT / "docs/results.md").read_text(encoding="utf-8"), ROOT / "results/larger.json"
    if marker == "larger":
        runs = json.loads(record.read_text(encoding="utf-8"))["runs"] if record.exists() else {}
        text = importlib.import_module("larger").table(runs)
    else:
        text = importlib.import_module("gpu_study").table()
    assert report.replace_between(page, marker, text) == page


def test_results(tmp_path: Path) -> None:
    """Tables, figures and CSV of the study are what ``hatam study table`` makes of its records."""
    records, times = Store(ROOT / "results/study.parquet").read(), ROOT / "results/study-time.csv"
    page = read("docs/results.md")
    text = results.render(records, pd.read_csv(times) if times.exists() else None, tmp_path, "figures")
    assert report.replace_between(page, "study", text) == page
    for figure in tmp_path.iterdir():
        assert figure.read_bytes() == (ROOT / "docs/figures" / figure.name).read_bytes()
    assert tables.summary(records).to_csv(index=False, float_format="%.5g") == read("results/study.csv")
    assert len(page.encode()) <= 15_000


PRINTED = {"telemetry.md": "loss_at_z", "from_adamw.md": "3.weight (1, 16)"}


def snippets(page: Path) -> list[str]:
    return [part.partition("```")[0] for part in page.read_text(encoding="utf-8").split("```python\n")[1:]]


@pytest.mark.parametrize("page", [page for page in PAGES if snippets(page)], ids=lambda page: page.name)
def test_snippets(page: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """They run one after the other, as a reader would run them; compiling itself is tested elsewhere."""
    monkeypatch.setattr(torch, "compile", lambda function: function)
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {"__name__": "snippet"}
    with patch.dict(modulators.MODULATORS), patch.dict(testing.MODULATORS):  # to which a snippet may add
        for snippet in snippets(page):
            exec(snippet, names)
    assert PRINTED.get(page.name, "") in capsys.readouterr().out
    assert 0 <= names.get("accuracy", 0) <= 1
