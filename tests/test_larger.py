"""The comparison on larger tasks, with small ones in their place."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hatam.bench.tasks import all_tasks, find

ROOT = Path(__file__).resolve().parent.parent
TASKS = {"digits": (0.001, 0.01), "digits-noise": (0.001, 0.01)}
PAGE = "before\n<!-- larger:start -->\n<!-- larger:end -->\nafter\n"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The script with two short tasks, and no record yet."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("larger")
    find.cache_clear()  # another test may have asked for these tasks
    for name in TASKS:
        monkeypatch.setitem(all_tasks(), name, dataclasses.replace(all_tasks()[name], steps=40, sharpness=False))
    changed = {"LRS": TASKS, "SEARCH_STEPS": dict.fromkeys(TASKS, 10)}
    for name, value in {**changed, "ROOT": tmp_path, "RECORD": tmp_path / "larger.json"}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(module, "as_completed", list)
    monkeypatch.setattr("sys.argv", ["larger.py", "--jobs", "2"])
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/results.md").write_text(PAGE, encoding="utf-8")
    yield module
    find.cache_clear()


class InThisProcess:
    """A pool whose futures are done: another process would have the real tasks."""

    def __init__(self, processes: int, **_: object) -> None:
        assert processes == 2

    def __enter__(self) -> InThisProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, do: Any, job: Any) -> Any:
        result = do(job)
        return type("Ended", (), {"result": lambda self: result})()


def test_it_chooses_by_validation_and_goes_on(script: Any, tmp_path: Path) -> None:
    assert script.table({}) == "Not run here."
    script.main()
    record = json.loads(script.RECORD.read_text(encoding="utf-8"))
    runs = record["runs"]
    assert len(runs) == 2 * (10 + 12)
    assert record["data"].keys() == TASKS.keys()
    for run in runs.values():
        assert (run["test"] is None) == (run["seed"] == script.SEARCH)
        assert run["steps"] == (10 if run["seed"] == script.SEARCH else 40)
        assert run["gradients_per_step"] == (2 if run["contender"] == "sam" else 1)
        assert run["every_option"]["weight_decay"] == 0.15
    for task in TASKS:
        for name in script.RADII:
            own = [run for run in runs.values() if (run["task"], run["contender"]) == (task, name)]
            tried = {run["options"]: run["validation"] for run in own if run["test"] is None}
            assert len(tried) == (4 if name == "sam" else 2)
            assert {run["options"] for run in own if run["test"] is not None} == {max(tried, key=tried.__getitem__)}
    page = (tmp_path / "docs/results.md").read_text(encoding="utf-8")
    assert page.count("| digits, accuracy, % |") == 4
    assert "| sam | lr=0" in page
    lost = next(key for key, run in runs.items() if run["contender"] == "hatam" and run["test"] is not None)
    expected = runs.pop(lost)
    script.RECORD.write_text(json.dumps(record), encoding="utf-8")
    assert "digits," not in script.table(runs)
    script.main()
    again = json.loads(script.RECORD.read_text(encoding="utf-8"))["runs"]
    assert {key: again[key] for key in runs} == runs
    assert again[lost]["test"] == expected["test"]


def test_a_diverged_run_is_not_chosen(script: Any) -> None:
    runs = {
        str(job): {"status": "ok" if job.options.startswith("lr=0.01") else "diverged", "validation": value}
        for jobs in script.search("digits").values()
        for job, value in zip(jobs, ["nan", "0.8", "0.99", "0.9"], strict=False)
    }
    for name, jobs in script.final("digits", runs).items():
        assert {job.options for job in jobs} == {"lr=0.01,rho=0.1" if name == "sam" else "lr=0.01"}
        assert [job.seed for job in jobs] == [*script.SEEDS]
