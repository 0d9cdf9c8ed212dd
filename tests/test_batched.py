"""Runs done together: each comes out as it does alone, and what cannot be done together is refused or done alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from report_records import put
from torch import Tensor, nn
from typer.testing import CliRunner

from hatam.bench import batched, cli, execution, records, report, runner, training
from hatam.bench.batched import refusal, train_many
from hatam.bench.cli import make_run
from hatam.bench.contenders import CONTENDERS
from hatam.bench.records import Run
from hatam.bench.tasks import Data, Split, Task, all_tasks
from hatam.bench.trainers import Gradient, Step, Trainer
from hatam.bench.training import prepare, train

MLP_TASK = all_tasks()["mnist1d-mlp"]


def in_float64(name: str) -> Task:
    """A task in float64, where rounding is too small to matter, on fewer samples."""
    task = all_tasks()[name]
    parts = [Split(split.x[:200].double(), split.y[:200]) for split in task.data()]
    return dataclasses.replace(task, data=lambda: Data(*parts), model=lambda: task.model().double(), batch_size=32)


def tuning(task: Task, specs: list[str], steps: int = 6) -> list[Run]:
    """Runs of different seeds that end without the final evaluation."""
    return [dataclasses.replace(make_run(task, spec, seed, steps), purpose="tune") for seed, spec in enumerate(specs)]


def with_weights(monkeypatch: pytest.MonkeyPatch, do: Callable[[], Any]) -> tuple[Any, list[Tensor]]:
    """What it returns, and the weights of every model that it trained."""
    trainers: list[Trainer] = []

    def kept(task: Task, run: Run) -> Trainer:
        trainers.append(prepare(task, run))
        return trainers[-1]

    for module in (batched, training):
        monkeypatch.setattr(module, "prepare", kept)
    result = do()
    return result, [nn.utils.parameters_to_vector(trainer.model.parameters()).detach() for trainer in trainers]


@pytest.mark.parametrize("name", ["mnist1d-mlp", "mnist1d-conv"])
@pytest.mark.parametrize("contender", CONTENDERS)
def test_runs_together_come_out_as_alone(name: str, contender: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = in_float64(name)
    runs = tuning(task, [f"{contender}:lr={lr}" for lr in (0.01, 0.02, 0.03)])
    together, weights = with_weights(monkeypatch, lambda: train_many(task, runs))
    alone, expected = with_weights(monkeypatch, lambda: [train(task, run) for run in runs])
    assert together[0]["curve"] != together[1]["curve"]
    for a, b, w, z in zip(together, alone, weights, expected, strict=True):
        torch.testing.assert_close(w, z, rtol=1e-7, atol=1e-9)
        assert [p.pop("train_loss") for p in a["curve"]] == pytest.approx([p.pop("train_loss") for p in b["curve"]])
        assert {k: a[k] for k in ("run", "curve", "result", "gradients_per_step")} == {
            k: b[k] for k in ("run", "curve", "result", "gradients_per_step")
        }


def test_the_records_are_those_of_single_runs_but_for_the_time(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    runs = [make_run(MLP_TASK, "hatam", seed, 4) for seed in (5, 6)]
    together = train_many(MLP_TASK, runs, lambda run, steps: told.append((run.seed, steps)))
    assert told == [(5, 1), (6, 1)] * 4
    for a, run in zip(together, runs, strict=True):
        b = train(MLP_TASK, run)
        assert a.keys() == b.keys()
        assert a["time"] == {"step_median_s": None, "steps_s": None, "batched": 2}
        assert a["result"].keys() == b["result"].keys()
        for key in ("train_loss", "hessian_lambda_max"):
            assert a["result"][key] == pytest.approx(b["result"][key], rel=1e-3)
        assert a["result"]["test"] == pytest.approx(b["result"]["test"], abs=0.1)
        records.write(tmp_path / f"{run.seed}.json", a)
    assert records.read_all(tmp_path) == records.jsonable(together)


@pytest.mark.parametrize(("contender", "without"), [("hatam", (1, 1)), ("adamw", (1, 1)), ("hatam", (0, 1))])
def test_a_table_takes_no_times_from_runs_done_together(
    tmp_path: Path, contender: str, without: tuple[int, int]
) -> None:
    """``without``: of the contender's two seeds, which have no time."""

    for label in ("adamw", "hatam"):
        for seed in (0, 1):
            seconds = None if label == contender and without[seed] else (1.0 if label == "adamw" else 3.0 + seed)
            put(tmp_path, label, seed, 1.0, time={"step_median_s": seconds})
    (compared,), _ = report.comparisons(report.find(tmp_path).entries)
    column = report.columns(compared).index("time/step")
    adamw, hatam = (report.cells(compared, c)[column] for c in compared.contestants)
    assert hatam == ("3.00" if without == (0, 1) else "–")
    assert adamw == ("–" if contender == "adamw" else "1.00")


def test_a_run_that_diverges_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    task = in_float64("mnist1d-mlp")
    runs = tuning(task, ["adamw", "adamw:lr=1e200", "adamw", "adamw:lr=0.1"])
    rows: list[int] = []

    class Spied(batched.Stack):
        def answer(self, requests: Any) -> list[Tensor]:
            rows.append(len(requests))
            return super().answer(requests)

    monkeypatch.setattr(batched, "Stack", Spied)
    got, weights = with_weights(monkeypatch, lambda: train_many(task, runs))
    calm = [runs[i] for i in (0, 2, 3)]
    expected, others = with_weights(monkeypatch, lambda: train_many(task, calm))
    assert [record["result"]["status"] for record in got] == ["ok", "diverged", "ok", "ok"]
    ended = len(got[1]["curve"])
    assert ended < 6
    assert rows == [4] * ended + [3] * (6 - ended) + [3] * 6
    for i, (record, w) in enumerate(zip(expected, others, strict=True)):
        at = (0, 2, 3)[i]
        assert got[at]["result"] == record["result"]
        torch.testing.assert_close(weights[at], w, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("layer", "reason"), [(nn.BatchNorm1d(100), "has buffers, such as 1.running_mean"), (nn.Dropout(0.5), "random")]
)
def test_models_that_cannot_be_batched_are_refused(layer: nn.Module, reason: str) -> None:
    task = dataclasses.replace(MLP_TASK, model=lambda: nn.Sequential(nn.Linear(40, 100), layer, nn.Linear(100, 10)))
    before = torch.get_rng_state()
    assert reason in (refusal(task, "adamw") or "")
    assert torch.equal(before, torch.get_rng_state())


class OwnStep(Trainer):
    def step(self, x: Tensor, y: Tensor) -> Tensor:
        return super().step(x, y)


class OwnCall(Trainer):
    def steps(self, x: Tensor, y: Tensor) -> Step:
        self.model(x)
        return (yield Gradient(x, y))


class OwnChoice(Trainer):
    """How many samples it asks for depends on its model."""

    def steps(self, x: Tensor, y: Tensor) -> Step:
        many = 10 + int(1e6 * abs(float(next(self.model.parameters()).detach().flatten()[0]))) % 50
        return (yield Gradient(x[:many], y[:many]))


class OwnNoise(Trainer):
    def steps(self, x: Tensor, y: Tensor) -> Step:
        return (yield Gradient(x + torch.randn_like(x), y))


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (OwnStep, "does not leave it to others"),
        (OwnCall, "calls the model by itself"),
        (OwnChoice, "only where all ask for the same"),
        (OwnNoise, "trainer draws random numbers"),
        (Trainer, None),
    ],
)
def test_trainers_that_cannot_be_batched_are_refused(
    kind: type[Trainer], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(model: nn.Module, loss: Any, options: dict[str, Any]) -> Trainer:
        return kind(model, loss, torch.optim.SGD(model.parameters(), lr=options["lr"]))

    monkeypatch.setitem(CONTENDERS, "adamw", dataclasses.replace(CONTENDERS["adamw"], build=make))
    said = refusal(MLP_TASK, "adamw")
    assert said is None if reason is None else reason in (said or "")


@pytest.mark.parametrize(
    ("key", "value"), [("steps", 5), ("contender", "sam"), ("batch_size", 7), ("warmup", 0.5), ("purpose", "final")]
)
def test_unequal_runs_are_refused(key: str, value: object) -> None:
    first, second = tuning(MLP_TASK, ["adamw", "adamw"])
    with pytest.raises(ValueError, match=f"must have the same {key}"):
        train_many(MLP_TASK, [first, dataclasses.replace(second, **{key: value})])


def test_groups_fill_the_processes_and_hold_each_run_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def sizes(n: int, jobs: int) -> list[int]:
        runs = tuning(MLP_TASK, ["adamw", "sam"] * n)
        divided = execution.groups(runs, jobs)
        assert sorted(run.seed for group in divided for run in group) == list(range(2 * n))
        assert all(len({run.contender for run in group}) == 1 for group in divided)
        return [len(group) for group in divided[: len(divided) // 2]]

    few, most = execution.FEWEST, execution.MOST
    assert sizes(few - 1, 1) == [1] * (few - 1)
    assert sizes(2 * few, 1) == [2 * few]
    assert sizes(2 * few, 2) == [few, few]
    assert sizes(2 * few, 8) == [few, few]
    assert sizes(most + 2, 1) == [most // 2 + 1] * 2
    assert sizes(most + 1, 1) == [most // 2 + 1, most // 2]
    monkeypatch.setattr(execution, "PARAMETERS", 10_000)
    assert sizes(few, 1) == [1] * few


def test_convolutions_go_one_by_one() -> None:
    runs = [dataclasses.replace(run, task="mnist1d-conv") for run in tuning(MLP_TASK, ["adamw"] * execution.FEWEST)]
    assert [len(group) for group in execution.groups(runs)] == [1] * len(runs)


def test_what_fails_together_is_done_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execution, "FEWEST", 2)
    equal = tuning(MLP_TASK, ["k-sam:k_fraction=0.5"] * 2, steps=2)
    unequal = tuning(MLP_TASK, ["k-sam:k_fraction=0.5", "k-sam:k_fraction=0.2", "k-sam:k_fraction=2"], steps=2)
    for run, record in execution.execute(equal, lambda run, steps: None):
        assert run in equal
        assert record["time"]["batched"] == 2
    ended = [record for _, record in execution.execute(unequal, lambda run, steps: None)]
    assert [record["gradients_per_step"] for record in ended[:2]] == pytest.approx([1, 52 / 128])
    assert "time" in ended[0]
    assert "batched" not in ended[0]["time"]
    assert isinstance(ended[2], execution.RunError)
    assert "k_fraction=2 is out of range" in str(ended[2])


def test_processes_batch_on_request(tmp_path: Path) -> None:
    runs = tuning(MLP_TASK, ["adamw"] * execution.FEWEST, steps=2)
    told: list[int] = []
    assert runner.run_all(runs, tmp_path, 1, lambda run, steps: told.append(run.seed), batch=True) == []
    assert {record["time"]["batched"] for record in records.read_all(tmp_path)} == {len(runs)}
    assert runner.missing(runs, tmp_path) == []
    assert set(told) <= set(range(len(runs)))


@pytest.mark.parametrize(("arguments", "batch"), [([], False), (["--batch"], True), (["--no-batch"], False)])
def test_compare_batches_only_on_request(arguments: list[str], batch: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def run_all(runs: list[Run], *_: Any, batch: bool) -> list[tuple[Run, str]]:
        asked.append(batch)
        return [(run, "not done") for run in runs]

    monkeypatch.setattr(runner, "run_all", run_all)
    CliRunner().invoke(cli.app, ["compare", "--seeds", "1", "--records", "nowhere", *arguments])
    assert asked == [batch]
