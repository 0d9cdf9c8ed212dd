"""The study: what its stages run, that test data stay unseen, and that nothing is lost or done twice."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Any

import jobs
import pandas as pd
import pytest
import torch
from optuna.trial import TrialState
from study_tiny import BUDGET, TASKS, load, make_plan, make_task
from typer.testing import CliRunner

from hatam.bench.cli import app
from hatam.bench.contenders import CONTENDERS, parse, space
from hatam.bench.records import Store
from hatam.bench.study import storage as storage_
from hatam.bench.study import timing, worker
from hatam.bench.study.leader import Leader
from hatam.bench.study.plans import FIRST_SEED, PLANS, Budget, Plan
from hatam.bench.study.stages import Cell, final, ranked, score, select, starts, winner
from hatam.bench.study.storage import Storage, Waiting, embedded
from hatam.bench.study.storage import jobs as jobs_of
from hatam.bench.tasks import Data, Task, all_tasks

SCRIPT = Path(__file__).with_name("study_tiny.py")
TINY = {**all_tasks(), **TASKS}
QUICK = Waiting(heartbeat=1, grace=2, patience=2.0, poll=0.05)


def make_study(folder: Path, plan: Plan | None = None, tasks: dict[str, Task] = TINY, url: str | None = None) -> Leader:
    resolved, _ = (plan or make_plan()).resolved(tasks)
    shared = Storage(url or embedded(folder), resolved.name, QUICK)
    return Leader(resolved, Store(folder / f"{resolved.name}.parquet"), shared, tasks)


def lead(study: Leader, tasks: dict[str, Task] = TINY) -> pd.DataFrame:
    """To its end, in this process; its records."""
    while not study.step():
        worker.work(study.storage, tasks, stay=False)
    return study.store.read()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return lead(make_study(tmp_path_factory.mktemp("study"), make_plan(contenders=("adamw", "sam"))))


def test_every_stage_runs_what_the_protocol_says(finished: pd.DataFrame) -> None:
    """AdamW has twice the settings in its search; SAM half, but its starts at least, and one length."""
    counts = Counter(zip(finished["contender"], finished["stage"], finished["comparison"], strict=True))
    assert counts == {
        ("adamw", "search", ""): 8,
        ("sam", "search", ""): 3,
        ("adamw", "select", ""): 2 * 2 * 2,
        ("sam", "select", ""): 2 * 2,
        ("adamw", "final", "steps"): 3,
        ("adamw", "final", "gradients"): 3,
        ("sam", "final", "steps"): 3,
        ("sam", "final", "gradients"): 3,
    }
    for stage, seeds in {"search": 1, "select": 2, "final": 3}.items():
        rows = finished[finished["stage"] == stage]
        assert set(rows["seed"]) == set(range(FIRST_SEED[stage], FIRST_SEED[stage] + seeds))
    assert set(finished[finished["comparison"] == "steps"]["steps"]) == {6}


def test_the_search_begins_with_the_defaults_and_goes_elsewhere(finished: pd.DataFrame) -> None:
    search = finished[(finished["stage"] == "search") & (finished["contender"] == "adamw")].sort_values("job")
    options = [json.loads(text) for text in search["options"]]
    assert options[0] == pytest.approx(parse("adamw", "tiny")[1])
    assert len({each["lr"] for each in options}) == 8


def test_the_search_of_others_begins_with_adamws_best(finished: pd.DataFrame) -> None:
    name = "sam"
    search = {
        who: finished[(finished["stage"] == "search") & (finished["contender"] == who)] for who in ("adamw", name)
    }
    best = search["adamw"].sort_values("validation", ascending=False, kind="stable")["options"].drop_duplicates()
    own = [json.loads(text) for text in search[name].sort_values("job")["options"]]
    assert own[0] == pytest.approx(parse(name, "tiny")[1])
    near = [{**own[0], **json.loads(text)} for text in best[: BUDGET.finalists]]
    others = [each for each in near if each != pytest.approx(own[0])]
    assert others
    for found, wanted in zip(own[1:], others, strict=False):
        assert found == pytest.approx(wanted)
    assert (
        starts(Cell(TASKS["tiny"], "schedule-free"), make_plan(), search["adamw"].to_dict("records"))[1]["schedule"]
        == "constant"
    )


def test_a_search_begins_with_no_setting_twice(finished: pd.DataFrame) -> None:
    cell, (_, defaults) = Cell(TASKS["tiny"], "sam"), parse("adamw", "tiny")
    row = finished[finished["stage"] == "search"].iloc[0].to_dict() | {"validation": 100.0}
    best = [
        row | {"options": json.dumps(defaults | {"lr": lr, "beta1": 1 - (1 - 0.9)})} for lr in (defaults["lr"], 0.01)
    ]
    given = starts(cell, make_plan(), best)
    assert [each["lr"] for each in given] == [defaults["lr"], 0.01]


def test_the_winner_is_the_best_finalist_by_validation(finished: pd.DataFrame) -> None:
    own = finished[finished["contender"] == "adamw"]
    selected = own[own["stage"] == "select"]
    means = selected.groupby(["options", "steps"])["validation"].mean()
    judged = own[own["stage"] == "final"].set_index("comparison")
    for comparison, allowed in (("steps", means.xs(6, level="steps", drop_level=False)), ("gradients", means)):
        (setting,) = set(judged.loc[comparison, ["options", "steps"]].itertuples(index=False, name=None))
        assert allowed[setting] == allowed.max()  # several may have it


def test_a_run_of_both_comparisons_is_done_once_and_recorded_in_both(finished: pd.DataFrame) -> None:
    sam = finished[(finished["contender"] == "sam") & (finished["stage"] == "final")]
    assert sam["key"].nunique() == 3
    assert sam.groupby("key")["test"].nunique().eq(1).all()


def test_tuning_never_reads_the_test_data(tmp_path: Path) -> None:
    """With other test data every choice is the same."""

    def other() -> Data:
        data = load()
        return data._replace(test=data.test._replace(y=(data.test.y + 1) % 3))

    found = [
        lead(make_study(tmp_path / name, tasks=(tasks := {"tiny": make_task("tiny", data=data)})), tasks)
        for name, data in (("a", load), ("b", other))
        if (tmp_path / name).mkdir() is None
    ]
    stages = [frame[frame["stage"] != "final"] for frame in found]
    assert all(frame["test"].isna().all() for frame in stages)
    first = [set(frame[frame["stage"] == "search"].query("job == 0")["validation"]) for frame in found]
    assert first[0] == first[1]
    assert set(found[0][found[0]["stage"] == "final"]["test"]) != set(found[1][found[1]["stage"] == "final"]["test"])


@pytest.mark.parametrize("name", CONTENDERS)
def test_everyone_has_the_same_gradients(name: str) -> None:
    """In the search, and in the longest run at equal gradients."""
    gradients = CONTENDERS[name].gradients
    assert 24 - gradients < Budget(trials=24).trials_of(name) * gradients <= 24 * (1 + (name == "adamw"))
    task = all_tasks()["mnist1d-mlp"]
    assert max(Cell(task, name).lengths) * gradients == pytest.approx(2 * task.steps, rel=1e-3)


@pytest.mark.parametrize("name", CONTENDERS)
def test_defaults_are_in_the_search_space(name: str) -> None:
    for task in PLANS["study"].tasks or ():
        options = parse(name, task)[1]
        for option, each in space(name, task).items():
            if hasattr(each, "values"):
                assert options[option] in each.values
            else:
                assert each.low <= options[option] <= each.high, (task, option)


@pytest.mark.parametrize("higher", [True, False])
def test_the_better_score_wins_and_a_diverged_one_never(higher: bool) -> None:
    task = make_task("t", higher_is_better=higher)

    def record(lr: float, validation: float, status: str = "ok") -> dict[str, Any]:
        return {"options": json.dumps({"lr": lr}), "steps": 6, "validation": validation, "status": status}

    records = [record(0.1, 2.0), record(0.2, 3.0), record(0.3, 9.0 if higher else -9.0, "diverged")]
    assert ranked(records, task)[0] == ({"lr": 0.2 if higher else 0.1}, 6)
    assert score(records[2], task) == -math.inf
    # A setting that lost a run is not compared with those that did not.
    assert ranked([*records, record(0.1, 1.0)], task, runs=2) == [({"lr": 0.1}, 6)]


def test_a_setting_that_the_search_repeats_is_no_better_for_it() -> None:
    cell, plan = Cell(TASKS["tiny"], "adamw"), make_plan(comparisons=("steps",))
    usual = parse("adamw", "tiny")[1]
    records = [
        {"options": json.dumps({**usual, "lr": lr}), "steps": 6, "validation": score, "status": "ok"}
        for lr, score in ((0.1, 9.0), (0.2, 5.0), (0.2, 5.0), (0.2, 5.0), (0.3, 7.0))
    ]
    assert {run.options["lr"] for run in select(cell, plan, records)} == {0.1, 0.3}


def test_a_plan_grows_without_moving_what_is_there() -> None:
    """The jobs of a stage are told by their number: with another comparison or more seeds the first stay."""
    cell, plan = Cell(TASKS["tiny"], "adamw"), make_plan(comparisons=("steps",))
    records = [
        {"options": json.dumps({**parse("adamw", "tiny")[1], "lr": lr}), "steps": 6, "validation": lr, "status": "ok"}
        for lr in (0.1, 0.2)
        for _ in range(BUDGET.select)
    ]
    first, more = select(cell, plan, records), select(cell, make_plan(), records)
    assert more[: len(first)] == first
    assert {run.steps for run in more[len(first) :]} == {12}
    grown = make_plan(budget=dataclasses.replace(BUDGET, final=5))
    assert final(cell, grown, "steps", records)[:3] == final(cell, plan, "steps", records)
    assert winner(cell, plan, "steps", []) is None
    assert final(cell, plan, "steps", []) == []


def test_records_alone_make_a_study_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a clone there are records and no storage: no run is done again, and what is missing is."""
    before = lead(make_study(tmp_path))
    (tmp_path / "storage.sqlite3").unlink()
    lost = before[(before["contender"] == "hatam") & (before["stage"] == "final")]["key"].iloc[0]
    before[before["key"] != lost].to_parquet(tmp_path / "tiny.parquet")  # it may be in both comparisons
    done = []
    train = worker.train
    monkeypatch.setattr(worker, "train", lambda task, run: done.append(run.key) or train(task, run))
    after = lead(make_study(tmp_path))
    assert done == [lost]
    columns = ["key", "comparison", "stage", "validation"]
    pd.testing.assert_frame_equal(
        before[columns].sort_values(columns, ignore_index=True), after[columns].sort_values(columns, ignore_index=True)
    )


def test_workers_stay_when_a_finished_study_goes_on(tmp_path: Path) -> None:
    """With another contender: a worker that starts before the leader has put its runs must not
    find the study finished."""
    lead(make_study(tmp_path, make_plan(contenders=("adamw",))))
    assert make_study(tmp_path).storage.noted("finished") is False


def test_a_task_that_raises_is_reported_and_holds_up_nobody(tmp_path: Path) -> None:
    study = make_study(tmp_path, make_plan(tasks=("raising", "tiny"), contenders=("adamw",)))
    records = lead(study)
    assert set(records["task"]) == {"tiny"}
    assert len(study.failures) == 8
    assert all("ArithmeticError: this model cannot be built (at" in error for error in study.failures.values())


def test_other_ranges_or_plans_are_refused(tmp_path: Path) -> None:
    make_study(tmp_path).step()
    with pytest.raises(ValueError, match="the storage has another run for search/tiny/adamw, job 0: ranges, defaults"):
        make_study(tmp_path, tasks={"tiny": make_task("tiny", steps=7)}).step()


@pytest.mark.parametrize("signed", [True, False], ids=["after a sign of life", "before any sign of life"])
def test_a_lost_workers_run_is_done_by_another(tmp_path: Path, signed: bool) -> None:
    study = make_study(tmp_path, make_plan(contenders=("adamw",), comparisons=("steps",)))
    study.step()
    search = study.storage.stage("search/tiny/adamw")
    taken = search.trials[0]._trial_id  # by a worker that dies
    study.storage.optuna.set_trial_state_values(taken, TrialState.RUNNING)
    if signed:
        study.storage.optuna.record_heartbeat(taken)
    deadline = time.monotonic() + 60
    while jobs_of(search)[0].state.name != "COMPLETE":
        worker.work(study.storage, TINY, stay=False)
        time.sleep(0.2)
        assert time.monotonic() < deadline
    records = lead(study)
    assert Counter(records["stage"]) == {"search": 8, "select": 4, "final": 3}


def test_an_interrupted_run_waits_again_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = make_study(tmp_path, make_plan(contenders=("adamw",), comparisons=("steps",)))
    study.step()

    def interrupted(task: Task, run: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(worker, "train", interrupted)
        with pytest.raises(KeyboardInterrupt):
            worker.work(study.storage, TINY, stay=False)
    search = study.storage.stage("search/tiny/adamw")
    assert storage_.counted(search)["failed"] == 0
    assert len(lead(study)) == 8 + 4 + 3


def test_a_storage_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"the storage sqlite:.*nowhere.* cannot be used: unable to open"):
        Storage(embedded(tmp_path / "nowhere"), "tiny", QUICK)
    with pytest.raises(ValueError, match="storage='here' is not an address; give one such as postgresql"):
        Storage("here", "tiny", QUICK)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tasks": ("tinny",)}, "unknown task 'tinny'. Did you mean 'tiny'?"),
        ({"contenders": ("adam",)}, "unknown contender 'adam'. Did you mean 'adamw'?"),
        ({"comparisons": ("step",)}, "unknown comparison 'step'. Did you mean 'steps'?"),
        ({"budget": Budget(trials=0)}, r"trials=0 of plan 'tiny' is not in \[1, 1000\)"),
        ({"budget": Budget(trials=2, finalists=3)}, r"finalists=3 of plan 'tiny' is not in \[1, trials=2\)"),
        ({"budgets": {"tiny": Budget(final=1)}}, r"final=1 of plan 'tiny' on tiny is not in \[2, 1000\)"),
    ],
)
def test_a_wrong_plan_is_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_plan(**changed).resolved(TINY)


def test_a_task_without_its_data_is_left_out_aloud() -> None:
    tasks = {"tiny": TASKS["tiny"], "far": make_task("far", missing=lambda: "get it")}
    plan, left_out = make_plan(tasks=None).resolved(tasks)
    assert (plan.tasks, left_out) == (("tiny",), ["far: get it"])
    with pytest.raises(ValueError, match="task 'far' of plan 'tiny' cannot run: get it"):
        make_plan(tasks=("far",)).resolved(tasks)


def test_step_times_are_relative_to_the_first() -> None:
    frame = timing.measure(TASKS["tiny"], ("adamw", "sam"), rounds=5)
    assert list(frame["contender"]) == ["adamw", "sam"]
    assert frame["ratio"][0] == 1
    assert frame["ratio"][1] > 1.2
    assert torch.get_num_threads() >= 1


@pytest.mark.parametrize("command", [["study", name, "--help"] for name in ("run", "work", "status", "time", "table")])
def test_every_help_has_an_example(command: list[str]) -> None:
    shown = CliRunner().invoke(app, command).output
    assert "Example: hatam study" in " ".join(shown.split())


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_and_given_again_it_repeats_no_run(tmp_path: Path, how: signal.Signals) -> None:
    arguments = ("study", "run", "--plan", "slow", "--results", str(tmp_path), "--jobs", "1", "--heartbeat", "1")
    arguments += ("--storage", embedded(tmp_path))
    records = tmp_path / "slow.parquet"
    started = jobs.Started(str(SCRIPT), *arguments, folder=tmp_path)
    deadline = time.monotonic() + 200
    while not records.exists():
        assert started.process.is_alive(), started.output
        assert time.monotonic() < deadline, started.output
        time.sleep(0.1)
    os.kill(started.pid, how)
    assert started.wait() == 130, started.output
    before = Store(records).read()
    assert len(before) >= 4
    assert jobs.Started(str(SCRIPT), *arguments, folder=tmp_path).wait() == 0
    after = Store(records).read()
    assert Counter(after["stage"]) == {"search": 8, "select": 8, "final": 6}
    same = after[after["key"].isin(before["key"])]
    assert set(before["started"]) <= set(same["started"])
