"""The study: what its stages run, that test data stay unseen, and that nothing is lost or done twice."""

from __future__ import annotations

import dataclasses
import importlib
import itertools
import json
import math
import os
import random
import shutil
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState
from study_tiny import SPACES, TASKS, Spaces, load, make_budget, make_plan, make_task
from typer.testing import CliRunner

from hatam.bench import archive, records
from hatam.bench.cli import app
from hatam.bench.contenders import CONTENDERS, parse
from hatam.bench.records import Run
from hatam.bench.report.load import find
from hatam.bench.study import timing, worker
from hatam.bench.study.coordinator import Coordinator, collect
from hatam.bench.study.plans import FIRST_SEED, PLANS, SEARCH, STAGES, Plan
from hatam.bench.study.queue import RETRIES, Queue, Waiting
from hatam.bench.study.stages import Cell, Setting, best, rest, score, settings_of
from hatam.bench.study.storage import embedded
from hatam.bench.tasks import Data, Task, all_tasks
from hatam.bench.training import train

SCRIPT = Path(__file__).with_name("study_tiny.py")
TINY = {**all_tasks(), **TASKS}
QUICK = Waiting(heartbeat=1, grace=2, patience=2.0, poll=0.05)


def make_study(folder: Path, plan: Plan | None = None, tasks: dict[str, Task] = TINY) -> Coordinator:
    """A study whose times are known."""
    resolved, _ = (plan or make_plan()).resolved(tasks)
    for name in resolved.tasks:
        path = folder / "timing" / f"{name}.json"
        if not path.exists():
            records.write(
                path, {"step_s": {"adamw": 1.0, "hatam": 1.25, "sam": 2.0}, "evaluation_s": 1.0, "final_s": 1.0}
            )
    study = Coordinator(resolved, folder, Queue(embedded(folder), "tiny", QUICK), tasks, SPACES)
    list(study.time())
    return study


def lead(study: Coordinator, tasks: dict[str, Task] = TINY) -> None:
    """To its end, in this process."""
    while not study.step():
        worker.work(study.queue, study.root, tasks, stay=False)


def cell_file(folder: Path, name: str = "tiny/adamw-steps") -> dict[str, Any]:
    return json.loads((folder / "cells" / f"{name}.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Coordinator:
    plan = make_plan(budget=make_budget(rounds=2, sensitivity=2), factors=(0.5, 2.0))
    study = make_study(tmp_path_factory.mktemp("study"), plan)
    lead(study)
    return study


def test_every_stage_runs_what_the_protocol_says(finished: Coordinator) -> None:
    for contender, knobs in (("adamw", 1), ("hatam", 5)):
        cell = cell_file(finished.folder, f"tiny/{contender}-steps")
        settings = {stage: len(cell["stages"][stage]["settings"]) for stage in STAGES}
        variants = 1 + 2 * knobs
        assert settings == {
            **dict.fromkeys(SEARCH, 0), "search-1": 3, "search-2": 2, "select": 2, "final": 1, "sensitivity": variants
        }  # fmt: skip
        runs = [6, 4, 0, 0, 0, 0, 0, 2 * 3, 3, 2 * variants]
        assert [cell["stages"][stage]["runs"] for stage in STAGES] == runs
        assert cell["stages"]["search-1"]["settings"][0]["options"] == CONTENDERS[contender].options
        assert cell["stages"]["search-1"]["gradients"] == 3 * 2 * 6
        assert not cell["failed"]
    assert len(records.read_all(finished.root)) == sum((6 + 4 + 6 + 3 + 2 * (1 + 2 * knobs)) for knobs in (1, 5))


def test_the_winner_is_the_best_finalist_over_all_its_seeds(finished: Coordinator) -> None:
    cell = next(cell for cell in finished.cells if cell.contender == "hatam")
    lrs = {stage: [s.params["lr"] for s in finished.settings(cell, stage)] for stage in STAGES[:-1]}
    scores: dict[float, dict[int, float]] = {}
    for record in records.read_all(finished.root):
        run = record["run"]
        if run["contender"] == "hatam" and run["purpose"] == "tune" and run["seed"] < FIRST_SEED["sensitivity"]:
            scores.setdefault(run["options"]["lr"], {})[run["seed"]] = record["result"]["validation"]
    by_tuning = sorted(
        [*lrs["search-1"], *lrs["search-2"]], key=lambda lr: -sum(scores[lr][seed] for seed in (1000, 1001))
    )
    assert lrs["select"] == by_tuning[:2]
    assert lrs["final"] == [max(lrs["select"], key=lambda lr: sum(scores[lr].values()))]
    assert all(len(scores[lr]) == 5 for lr in lrs["select"])


def test_final_runs_of_an_earlier_winner_are_not_reported(finished: Coordinator, tmp_path: Path) -> None:
    """They are left where a search has been made longer; without the file of its cell nobody knows the winner."""
    folder = tmp_path / "study"
    shutil.copytree(finished.folder, folder)
    entries = find(folder).entries
    record = next(r for r in records.read_all(finished.root) if r["run"]["purpose"] == "final")
    run = Run(**{**record["run"], "options": {**record["run"]["options"], "lr": 0.123}})
    records.write(run.path(folder / "records"), {**record, "run": vars(run)})
    assert find(folder).entries == entries
    (folder / f"cells/tiny/{run.contender}-steps.json").unlink()
    assert len(find(folder).entries) == len(entries) + 1


def test_no_seed_is_in_two_stages(finished: Coordinator) -> None:
    for plan in (finished.plan, *PLANS.values()):
        for one, other in itertools.combinations(STAGES, 2):
            assert {one, other} <= {*SEARCH} or not set(plan.seeds_of(one, "tiny")) & set(plan.seeds_of(other, "tiny"))
    final = {r["run"]["seed"] for r in records.read_all(finished.root) if "test" in r["result"]}
    assert final == {9000, 9001, 9002}
    with pytest.raises(ValueError, match=r"seeds\['search'\]=1001"):
        make_plan(budget=make_budget(search=1001)).resolved(TINY)


class Spied(tuple[torch.Tensor, torch.Tensor]):
    """A split that tells when it is read."""

    reads = 0
    x = property(lambda self: self._read(0))
    y = property(lambda self: self._read(1))

    def _read(self, index: int) -> torch.Tensor:
        Spied.reads += 1
        return self[index]


def test_tuning_never_reads_the_test_data(tmp_path: Path) -> None:
    data = load()
    task = make_task("tiny", data=lambda: Data(data.train, data.validation, Spied(data.test)))
    study = make_study(tmp_path, make_plan(contenders=("adamw",)), {"tiny": task})
    Spied.reads = 0
    for _ in range(2):  # tune, select
        assert not study.step()
        worker.work(study.queue, study.root, {"tiny": task}, stay=False)
    assert len(records.read_all(study.root)) == 12
    assert Spied.reads == 0
    lead(study, {"tiny": task})
    assert Spied.reads > 0


def test_the_search_goes_on_from_the_best_by_one_option_at_a_time() -> None:
    """lr, the contender's own, β1, weight decay; then finer from where it is: so a score with one peak is climbed."""
    task, plan = all_tasks()["mnist1d-mlp"], PLANS["full"]
    cell = Cell(task, "sam", "steps", task.steps)
    spaces = importlib.import_module("hatam.bench.spaces")

    def height(o: dict[str, Any]) -> float:
        far = abs(math.log(o["lr"] / 0.01)) + abs(math.log(o["rho"] / 1.0)) + abs(o["beta1"] - 0.8)
        return 100 - far - abs(math.log(o["weight_decay"] / 0.3))

    def results(run: Run) -> dict[str, Any]:
        return {"result": {"status": "ok", "validation": height(run.options)}}

    settings: dict[str, list[Setting]] = {}
    for stage in SEARCH:
        settings[stage] = settings_of(cell, plan, stage, spaces, results, settings.__getitem__)
    center = settings["search-1"][0].params
    assert center == {key: parse("sam", task.name)[1][key] for key in center}
    turns = ["lr", "rho", "beta1", "weight_decay", "lr", "rho"]
    for stage, option in zip(SEARCH[:-1], turns, strict=True):
        changed = [{key for key in center if setting.params[key] != center[key]} for setting in settings[stage]]
        assert all(each <= {option} for each in changed)
        center = max(center, *(setting.params for setting in settings[stage]), key=height)
    assert sum(map(len, settings.values())) == plan.budget.settings == 29
    assert center["lr"] == pytest.approx(0.01, rel=0.4)
    assert (center["rho"], center["beta1"], center["weight_decay"]) == (1.0, 0.8, 0.3)


def test_the_search_begins_at_the_defaults_of_what_records_do_not_name() -> None:
    task, spaces = all_tasks()["mnist1d-mlp"], importlib.import_module("hatam.bench.spaces")
    cell = Cell(task, "schedule-free", "steps", task.steps)
    first, *_ = settings_of(cell, PLANS["full"], SEARCH[0], spaces, lambda run: None, lambda stage: [])
    assert first.params["r"] == 0.0
    assert first.options == parse("schedule-free", task.name)[1]


@pytest.mark.parametrize("name", ["digits", "mnist1d-mlp", "minilm"])
def test_everyone_gets_as_many_settings(name: str) -> None:
    """However many options it has, and wherever the search goes: the last stage fills up, and none is tried twice."""
    task, plan = all_tasks()[name], PLANS["full"]
    spaces = importlib.import_module("hatam.bench.spaces")
    for seed, contender in enumerate(CONTENDERS):
        cell, rng = Cell(task, contender, "steps", task.steps), random.Random(seed)
        scores: dict[str, float] = {}

        def results(run: Run, scores: dict[str, float] = scores, rng: random.Random = rng) -> dict[str, Any]:
            validation = scores.setdefault(str(run.options), rng.random())
            return {"result": {"status": "ok", "validation": validation}}

        settings: dict[str, list[Setting]] = {}
        for stage in SEARCH:
            settings[stage] = settings_of(cell, plan, stage, spaces, results, settings.__getitem__)
        tried = [str(setting.params) for stage in SEARCH for setting in settings[stage]]
        assert len(tried) == len(set(tried)) == plan.budget_of(name).settings


@pytest.mark.parametrize("seed", range(5))
def test_no_choice_is_skipped_wherever_the_search_went(seed: int) -> None:
    """AdamW comes by β1 twice; by then it has had all of them, though the best may have become another meanwhile."""
    task, rng = all_tasks()["minilm"], random.Random(seed)
    cell, spaces = Cell(task, "adamw", "steps", task.steps), importlib.import_module("hatam.bench.spaces")
    scores: dict[str, float] = {}

    def results(run: Run) -> dict[str, Any]:
        return {"result": {"status": "ok", "validation": scores.setdefault(str(run.options), rng.random())}}

    settings: dict[str, list[Setting]] = {}
    for stage in SEARCH[:5]:
        settings[stage] = settings_of(cell, PLANS["full"], stage, spaces, results, settings.__getitem__)
    choices = spaces.space("adamw", "minilm")["beta1"].choices
    assert {setting.params["beta1"] for each in settings.values() for setting in each} == {*choices}


def test_the_last_stage_looks_beyond_what_was_tried_first() -> None:
    """Two values past an edge at which the best lies, then choices without a try, then values in between."""
    space = {
        "lr": FloatDistribution(0.01, 1.0, log=True),
        "beta1": CategoricalDistribution([0.5, 0.9, 0.95]),
        "weight_decay": FloatDistribution(0.01, 0.3, log=True),
    }
    tried = [
        {"lr": lr, "beta1": 0.9, "weight_decay": wd} for lr, wd in ((0.1, 0.1), (0.2, 0.1), (0.05, 0.1), (0.1, 0.2))
    ]
    here = {"lr": 0.1, "beta1": 0.9, "weight_decay": 0.2}
    points = list(rest(space, [*space], here, tried, 4))
    changed = [next((key, p[key]) for key in here if p[key] != here[key]) for p in points]
    assert changed[:4] == [("weight_decay", 0.3), ("weight_decay", 0.3), ("beta1", 0.5), ("beta1", 0.95)]
    assert [key for key, _ in changed[4:7]] == ["lr", "lr", "weight_decay"]


def test_same_time_gives_the_cheaper_contender_more_steps(tmp_path: Path) -> None:
    study = make_study(tmp_path, make_plan(contenders=("adamw", "sam"), comparisons=("steps", "time")))
    steps = {(cell.contender, cell.comparison): cell.steps for cell in study.cells}
    assert steps == {("adamw", "steps"): 6, ("adamw", "time"): 12, ("sam", "steps"): 6}


def test_the_comparisons_share_the_tuning_and_nothing_else(tmp_path: Path) -> None:
    study = make_study(tmp_path, make_plan(contenders=("adamw",), comparisons=("steps", "time")))
    lead(study)
    cells = {comparison: cell_file(tmp_path, f"tiny/adamw-{comparison}") for comparison in ("steps", "time")}
    tried = [cell["stages"]["search-1"]["settings"] for cell in cells.values()]
    assert tried[0] == tried[1]
    runs = [record["run"] for record in records.read_all(study.root)]
    assert Counter(run["steps"] for run in runs) == {6: 6 + 6 + 3, 12: 6 + 3}
    final = cells["time"]["stages"]["select"]["settings"]
    assert cells["time"]["winner"]["params"] == max(final, key=lambda s: s["validation"])["params"]  # at its own length
    assert study.seconds_done() == pytest.approx(study.seconds_in_all())


def test_a_cells_file_stands_for_the_records_that_chose_its_winner(tmp_path: Path) -> None:
    plan = make_plan(budget=make_budget(rounds=2, sensitivity=2), factors=(0.5, 2.0))
    study = make_study(tmp_path, plan)
    lead(study)
    before = {name: cell_file(tmp_path, f"tiny/{name}-steps") for name in ("adamw", "hatam")}
    final = [record["run"] for record in records.read_all(study.root) if record["run"]["purpose"] == "final"]

    shutil.rmtree(study.root)
    (tmp_path / "queue.sqlite3").unlink()
    again = make_study(tmp_path, plan)
    lead(again)
    assert [record["run"] for record in records.read_all(again.root)] == final  # and nothing else
    for name, cell in before.items():
        assert cell_file(tmp_path, f"tiny/{name}-steps") == approximately(cell)

    path = tmp_path / "cells/tiny/adamw-steps.json"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match=r"adamw-steps.json is damaged .* restore it, or remove it"):
        make_study(tmp_path, plan)


def approximately(value: Any) -> Any:
    """Equal but for the rounding of its numbers."""
    if isinstance(value, dict):
        return {key: approximately(each) for key, each in value.items()}
    if isinstance(value, list):
        return [approximately(each) for each in value]
    return pytest.approx(value) if isinstance(value, float) and math.isfinite(value) else value


def test_a_comparison_can_come_first(tmp_path: Path) -> None:
    plan = make_plan(contenders=("adamw", "sam"), comparisons=("steps", "time"))
    queue = Queue(embedded(tmp_path), "tiny")
    for comparison in ("steps", "time"):
        study = Coordinator(plan, tmp_path, queue, TINY, SPACES, None, [comparison])
        assert list(study.time()) == ["tiny"]
        shared = [("sam", "steps")]  # which needs as long in both
        assert [(c.contender, c.comparison) for c in study.cells] == [("adamw", comparison), *shared]
    with pytest.raises(ValueError, match="unknown comparison of the plan 'epochs'"):
        Coordinator(plan, tmp_path, queue, TINY, SPACES, None, ["epochs"])


def test_some_tasks_can_come_first_and_others_join_later(tmp_path: Path) -> None:
    queue = Queue(embedded(tmp_path), "tiny")
    make_study(tmp_path)
    plan = make_plan(tasks=("tiny", "slow"), contenders=("adamw", "hatam", "lion"))
    study = Coordinator(plan, tmp_path, queue, TASKS, SPACES, at=["slow"])
    assert list(study.time()) == ["slow"]
    assert [cell.name for cell in study.cells] == ["slow/adamw/steps", "slow/hatam/steps", "slow/lion/steps"]
    assert json.loads((tmp_path / "plan.json").read_text())["contenders"] == ["adamw", "hatam", "lion"]
    budgets = dataclasses.replace(plan, budgets={"slow": make_budget(4)})
    Coordinator(budgets, tmp_path, queue, TASKS, SPACES)
    with pytest.raises(ValueError, match=r"begun with budgets=.*'trials': 4.*, and now it is .*'trials': 6"):
        Coordinator(dataclasses.replace(plan, budgets={"slow": make_budget(6)}), tmp_path, queue, TASKS, SPACES)
    with pytest.raises(ValueError, match=r"begun with tasks=\['tiny', 'slow'\], and now it is \['tiny'\]"):
        make_study(tmp_path)
    with pytest.raises(ValueError, match="unknown task of the plan 'quick'"):
        Coordinator(plan, tmp_path, queue, TASKS, SPACES, at=["quick"])


def test_a_queue_of_other_runs_is_refused(tmp_path: Path) -> None:
    """As where ranges have changed since it was filled: its jobs would pass for those that are wanted."""
    study = make_study(tmp_path)
    study.step()

    class Wider(Spaces):
        @staticmethod
        def space(contender: str, task: str) -> dict[str, BaseDistribution]:
            return {"lr": FloatDistribution(0.02, 1.0, log=True)}

    other = Coordinator(study.plan, tmp_path, study.queue, TINY, Wider("hatam.bench.spaces"))
    list(other.time())
    with pytest.raises(ValueError, match=r"other runs for search-1/tiny/adamw/steps.*remove queue\.sqlite3"):
        other.step()


def test_some_contenders_can_come_first(tmp_path: Path) -> None:
    plan, _ = make_plan().resolved(TINY)
    make_study(tmp_path)
    queue = Queue(embedded(tmp_path), "tiny", QUICK)
    first = Coordinator(plan, tmp_path, queue, TINY, SPACES, ["hatam"])
    list(first.time())
    lead(first)
    assert {record["run"]["contender"] for record in records.read_all(first.root)} == {"hatam"}
    assert queue.noted("finished")
    rest = make_study(tmp_path)
    before = count(tmp_path)
    lead(rest)
    assert before.items() <= count(tmp_path).items()
    assert {record["run"]["contender"] for record in records.read_all(first.root)} == {"adamw", "hatam"}
    with pytest.raises(ValueError, match=r"unknown contender of the plan 'sam'"):
        Coordinator(plan, tmp_path, queue, TINY, SPACES, ["sam"])


def test_step_times_are_measured() -> None:
    measured = timing.measure(TASKS["tiny"], ["adamw"])
    assert measured["step_s"].keys() == {"adamw", "sam"}
    assert min(measured["evaluation_s"], measured["final_s"]) > 0
    assert 1 < measured["step_s"]["sam"] / measured["step_s"]["adamw"] < 10


def test_a_contender_that_comes_later_is_measured_beside_sam(tmp_path: Path) -> None:
    path = tmp_path / "tiny.json"
    records.write(path, {"step_s": {"adamw": 1.0, "sam": 1000.0}, "evaluation_s": 1.0, "final_s": 1.0})
    times = timing.read_or_measure(TASKS["tiny"], ["adamw", "hatam"], path)["step_s"]
    assert (times["adamw"], times["sam"]) == (1.0, 1000.0)
    assert 100 < times["hatam"] < 2000
    assert json.loads(path.read_text())["step_s"] == times
    path.write_text('{"step_s": []}')
    with pytest.raises(ValueError, match=r"tiny\.json is not a record of times"):
        timing.read_or_measure(TASKS["tiny"], ["adamw"], path)


@pytest.mark.parametrize("higher", [True, False])
def test_the_better_score_wins_and_a_diverged_one_never(higher: bool) -> None:
    task = dataclasses.replace(TASKS["tiny"], higher_is_better=higher)
    cell, plan = Cell(task, "adamw", "steps", 6), make_plan()
    settings = settings_of(cell, plan, "search-1", SPACES, lambda run: None, lambda stage: [])
    results = {
        setting.options["lr"]: {"result": {"status": status, "validation": value}}
        for setting, status, value in zip(
            settings, ("ok", "diverged", "ok"), (1.0, 9.0 if higher else -9.0, 2.0), strict=True
        )
    }
    ranked = best(cell, plan, ("search-1",), settings, lambda run: results[run.options["lr"]])
    order = [settings.index(setting) for setting in ranked]
    assert order[:2] == ([2, 0] if higher else [0, 2])
    assert score(results[settings[1].options["lr"]], task) == -math.inf
    assert score({"result": {"status": "ok", "validation": math.nan}}, task) == -math.inf


def test_a_diverged_run_is_a_result(tmp_path: Path) -> None:
    def lost(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.sum(1) * math.inf

    tasks = {"tiny": make_task("tiny", loss=lost)}
    study = make_study(tmp_path, make_plan(contenders=("adamw",)), tasks)
    lead(study, tasks)
    cell = cell_file(tmp_path)
    assert not study.failures
    assert cell["stages"]["search-1"]["diverged"] == 6
    assert cell["winner"] is not None


def test_a_task_that_raises_is_tried_again_reported_and_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls: Counter[str] = Counter()
    execute = worker.execute

    def counted(runs: Any, progress: Any, *, task: Task) -> Any:
        calls[task.name] += bool(runs)
        return execute(runs, progress, task=task)

    monkeypatch.setattr(worker, "execute", counted)
    study = make_study(tmp_path, make_plan(tasks=("tiny", "raising"), contenders=("adamw",)))
    lead(study)
    assert calls["raising"] == 3 * (1 + RETRIES)
    assert len(study.failures) == 3
    assert all("ArithmeticError: this model cannot be built" in failure.error for failure in study.failures)
    assert cell_file(tmp_path)["winner"] is not None
    failed = cell_file(tmp_path, "raising/adamw-steps")
    assert failed["winner"] is None
    assert len(failed["failed"]) == 3
    study.queue.try_again()
    repaired = {**TINY, "raising": make_task("raising")}
    again = make_study(tmp_path, study.plan, repaired)
    lead(again, repaired)
    assert not again.failures
    assert cell_file(tmp_path, "raising/adamw-steps")["winner"] is not None


def test_what_has_a_record_is_not_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lead(make_study(tmp_path))
    (tmp_path / "queue.sqlite3").unlink()
    archive.pack(tmp_path / "records")
    shutil.rmtree(tmp_path / "records" / "tiny")
    archive.unpack(tmp_path / "records")
    for path in (tmp_path / "records").rglob("9001.json"):
        path.unlink()
    ran: list[int] = []
    monkeypatch.setattr(
        "hatam.bench.execution.train", lambda task, run, progress: (ran.append(run.seed), train(task, run))[1]
    )
    lead(make_study(tmp_path))
    assert ran == [9001, 9001]


def test_records_come_home_from_the_queue_alone(tmp_path: Path) -> None:
    study = make_study(tmp_path / "here")
    while not study.step():
        worker.work(study.queue, tmp_path / "there", TINY, stay=False)  # a worker on another machine
    home = records.read_all(study.root)
    assert home == records.read_all(tmp_path / "there")
    assert collect(study.queue, tmp_path / "third") == len(home)
    assert records.read_all(tmp_path / "third") == home


@pytest.mark.parametrize("content", ["", '{"schema": 1}'])
def test_a_damaged_record_is_named_and_its_job_goes_back(tmp_path: Path, content: str) -> None:
    study = make_study(tmp_path, make_plan(contenders=("adamw",)))
    study.step()
    run = study.runs(study.cells[0], "search-1")[1]
    path = run.path(study.root)
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(ValueError, match=rf"{path.parent.name}/1001\.json is not a record"):
        worker.work(study.queue, study.root, TINY, stay=False)
    assert Counter(state.state for state in study.queue.states("search-1/tiny/adamw/steps")) == {"waiting": 3}
    with pytest.raises(ValueError, match=r"1001\.json is not a record"):
        make_study(tmp_path, study.plan).step()
    path.unlink()
    lead(study)
    assert cell_file(tmp_path)["stages"]["search-1"]["runs"] == 6


def test_a_full_disk_is_an_error_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(tmp_path, make_plan(contenders=("adamw",)))
    study.step()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            worker.work(study.queue, study.root, TINY, stay=False)
    lead(study)
    assert not study.failures
    assert cell_file(tmp_path)["stages"]["search-1"]["runs"] == 6


def test_a_storage_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"the queue at sqlite:.*nowhere.*unable to open"):
        Queue(embedded(tmp_path / "nowhere"), "tiny", QUICK)
    with pytest.raises(ValueError, match="storage='tiny' is not an address"):
        Queue("tiny", "tiny", QUICK)


def test_a_study_keeps_the_plan_it_began_with(tmp_path: Path) -> None:
    make_study(tmp_path)
    with pytest.raises(ValueError, match=r"begun with budget=.*'trials': 2.*, and now it is .*4.*--name"):
        make_study(tmp_path, make_plan(budget=make_budget(4)))
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(ValueError, match=r"plan\.json is damaged"):
        make_study(tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tasks": ("tinny",)}, "unknown task 'tinny'. Did you mean 'tiny'"),
        ({"contenders": ("hatm",)}, "unknown contender 'hatm'. Did you mean 'hatam'"),
        ({"comparisons": ("tim",)}, "unknown comparison 'tim'. Did you mean 'time'"),
        ({"budget": make_budget(finalists=9)}, "finalists=9"),
        ({"budget": make_budget(trials=3)}, "trials=3"),
        ({"budget": make_budget(rounds=8)}, "rounds=8"),
        ({"budgets": {"tinny": make_budget()}}, "unknown task 'tinny'. Did you mean 'tiny'"),
    ],
)
def test_a_plan_with_an_unknown_name_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(**changed).resolved(TINY)


def test_a_task_without_its_data_is_left_out_aloud() -> None:
    tasks = {**TASKS, "tiny": make_task("tiny", missing=lambda: "it needs a folder")}
    plan, left_out = make_plan(tasks=None).resolved(tasks)
    assert plan.tasks == ("slow", "raising")
    assert left_out == ["tiny: it needs a folder"]
    with pytest.raises(ValueError, match="'tiny' of plan 'tiny' cannot run: it needs a folder"):
        make_plan().resolved(tasks)


def test_a_worker_without_a_sign_of_life_loses_its_job(tmp_path: Path) -> None:
    study = make_study(tmp_path, make_plan(contenders=("adamw",)))
    study.step()
    stage = "search-1/tiny/adamw/steps"
    taken = study.queue.take(stage, 1)  # and then it dies
    first = train(TASKS["tiny"], taken[0].runs[0])
    study.queue.keep(taken[0], first)
    worker.work(study.queue, study.root, TINY, stay=False)
    assert Counter(state.state for state in study.queue.states(stage)) == {"complete": 2, "running": 1}
    time.sleep(4)
    worker.work(study.queue, study.root, TINY, stay=False)  # finds nothing waiting, but that
    worker.work(study.queue, study.root, TINY, stay=False)
    states = study.queue.states(stage)
    assert Counter(state.state for state in states) == {"complete": 3}
    assert records.read(taken[0].runs[0].path(study.root))["started"] == first["started"]
    study.queue.complete(taken[0], 1.0)  # it was not dead after all: too late, and no harm
    lead(study)
    assert cell_file(tmp_path)["stages"]["search-1"]["runs"] == 6


def test_a_failed_job_is_put_back_by_the_leader_only_if_nobody_else_does(tmp_path: Path) -> None:
    study = make_study(tmp_path, make_plan(contenders=("adamw",)))
    study.step()
    stage = "search-1/tiny/adamw/steps"
    taken = study.queue.take(stage, 1)
    study.queue.storage.set_trial_state_values(taken[0].trial_id, TrialState.FAIL)  # and dies before it puts it back
    for _ in range(3):
        assert [state.state for state in study.queue.states(stage)] == ["waiting"] * 3
    assert len(study.queue.trials(stage)) == 3  # a worker that lives would have put it back by itself
    time.sleep(QUICK.grace + 0.2)
    assert [state.state for state in study.queue.states(stage)] == ["waiting"] * 3
    assert len(study.queue.trials(stage)) == 4
    lead(study)
    assert cell_file(tmp_path)["stages"]["search-1"]["runs"] == 6


@pytest.mark.parametrize("command", ["run", "work", "status", "collect", "pack", "table"])
def test_every_help_has_an_example(command: str) -> None:
    result = CliRunner().invoke(app, ["study", command, "--help"])
    assert result.exit_code == 0
    assert "Example: hatam study" in result.output


@pytest.mark.parametrize("command", ["status", "collect"])
def test_looking_makes_no_queue(tmp_path: Path, command: str) -> None:
    (tmp_path / "full").mkdir()
    result = CliRunner().invoke(app, ["study", command, "--results", str(tmp_path)])
    assert result.exit_code == 1
    assert "there is no queue in" in str(result.exception or result.output)
    assert not list((tmp_path / "full").iterdir())


def start(folder: Path, *arguments: str) -> jobs.Started:
    (folder / "logs").mkdir(exist_ok=True)
    return jobs.Started(SCRIPT, "study", *arguments, "--results", folder, folder=folder / "logs", COLUMNS="200")


def count(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("records/*/*/*.json")}


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["by Ctrl-C", "in the background"])
def test_interrupted_and_given_again_it_repeats_no_run(tmp_path: Path, how: signal.Signals) -> None:
    options = ("run", "--plan", "slow", "--jobs", "1", "--heartbeat", "1")
    first = start(tmp_path, *options)
    while len(count(tmp_path)) < 3 and first.process.is_alive():
        time.sleep(0.05)
    os.kill(first.pid, how)
    assert first.wait() == 130, first.output
    assert "the same command goes on" in first.output
    before = count(tmp_path)
    assert 3 <= len(before) < 15
    second = start(tmp_path, *options)
    assert second.wait() == 0, second.output
    assert "cost in thousands of gradients" in second.output
    after = count(tmp_path)
    assert len(after) == 6 + 6 + 3
    assert before.items() <= after.items()
    status = CliRunner().invoke(app, ["study", "status", "--name", "slow", "--results", str(tmp_path)])
    assert "finished" in status.output
    assert not list(tmp_path.rglob("*.tmp"))
