"""Comparing on a problem of one's own: a training function, a task in a file, and the examples as they are shown."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import jobs
import numpy as np
import pandas as pd
import pytest
import torch

from hatam import HATAM
from hatam.bench import compare, evaluating
from hatam.bench.cli import make_run
from hatam.bench.digests import digest
from hatam.bench.own import Result, _contestants, make_optimizer
from hatam.bench.records import Store
from hatam.bench.stats import paired
from hatam.bench.tasks import find

ROOT = Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "own_model.py"


def run(script: Path | str, *arguments: str, folder: Path) -> str:
    started = jobs.Started(script, *arguments, folder=folder, cwd=folder)
    assert started.wait() == 0, started.output
    return started.output


def train(make_optimizer, seed: int) -> float:
    """A quadratic; at module level, so that other processes can import it."""
    w = torch.nn.Parameter(torch.randn(3))
    optimizer = make_optimizer([w])
    for _ in range(5):
        optimizer.zero_grad()
        w.square().sum().backward()
        optimizer.step()
    with evaluating(optimizer):
        return w.square().sum().item()


def records(folder: Path) -> pd.DataFrame:
    """All records below a folder."""
    return pd.concat([Store(path).read() for path in folder.rglob("*.parquet")])


def means(result: Result) -> list[float]:
    return list(result.table["mean"])


def scores(result: Result, label: str, metric: str = "score") -> dict[int, float]:
    own = result.scores[(result.scores["label"] == label) & (result.scores["metric"] == metric)]
    return dict(zip(own["seed"], own["test"], strict=True))


def test_the_example_runs(tmp_path: Path) -> None:
    shown = run(EXAMPLE, folder=tmp_path).lstrip()  # after an empty line of the progress bar
    assert shown.startswith("accuracy, %: mean ± 95% interval")
    rows = [line.split() for line in shown.splitlines()[2:]]
    assert [row[0] for row in rows] == [f"{name}lr=0.03" for name in ("adamw:", "hatam:", "msam:rho=0.5,", "nadam:")]
    assert [row[1] for row in rows] == ["4"] * 4
    assert float(rows[1][2]) > 80
    assert len(records(tmp_path / "runs")) == 16


def test_the_example_of_a_task_runs(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "digits.py").write_bytes((ROOT / "examples" / "own_task.py").read_bytes())
    arguments = ["compare", "--task", "tasks/digits.py:TASK", "--seeds", "1", "--steps", "20", "--jobs", "1"]
    shown = run("hatam.bench", *arguments, "--contender", "adamw", "--contender", "sam:rho=0.05", folder=tmp_path)
    assert "sam:rho=0.05" in shown
    written = records(tmp_path / "runs")
    assert list(zip(written["task"], written["status"], strict=True)) == [("tasks/digits.py:TASK", "ok")] * 2
    assert (tmp_path / "runs" / "curves-tasks-digits-py-TASK.svg").exists()


def test_rows_are_those_of_the_returned_scores(tmp_path: Path) -> None:
    def score(make_optimizer, seed: int) -> dict[str, float]:
        make_optimizer([torch.nn.Parameter(torch.ones(1))])
        return {"a": float(torch.rand(())), "b": 2.0}

    result = compare(score, ["adamw", "hatam"], seeds=[3, 5, 8], folder=tmp_path)
    rows = result.table
    assert list(zip(rows["label"], rows["metric"], strict=True)) == [(c, m) for m in "ab" for c in ("adamw", "hatam")]
    first, second = scores(result, "adamw", "a"), scores(result, "hatam", "a")
    assert first == {seed: float(torch.manual_seed(seed) and torch.rand(())) for seed in (3, 5, 8)}
    assert math.isnan(rows["difference"][0])
    assert rows["difference"][1] == paired(second, first).mean
    assert rows["time"][0] == 1


def test_a_comparison_resumes_and_a_changed_function_is_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []

    def score(make_optimizer, seed: int) -> float:
        calls.append(seed)
        return seed + 0.5

    compare(score, ["adamw"], seeds=2, folder=tmp_path)
    assert "records" not in capsys.readouterr().out
    result = compare(score, ["adamw:lr=0.03"], seeds=3, folder=tmp_path)  # the same by another name, and one more
    assert calls == [0, 1, 2]
    assert f"2 of 3 runs have records in {tmp_path / 'score.parquet'} already" in capsys.readouterr().out
    assert scores(result, "adamw:lr=0.03") == {0: 0.5, 1: 1.5, 2: 2.5}

    def changed(make_optimizer, seed: int) -> float:
        calls.append(seed)
        return seed + 0.25

    changed.__name__ = "score"
    assert scores(compare(changed, ["adamw"], seeds=1, folder=tmp_path), "adamw") == {0: 0.25}


def test_what_fails_is_named_and_the_others_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def score(make_optimizer, seed: int) -> float:
        if seed == 1:
            raise KeyError("no such file")
        return math.nan if seed == 2 else 1.0

    result = compare(score, ["adamw"], seeds=4, folder=tmp_path)
    ((label, seed, text),) = result.failures
    assert (label, seed) == ("adamw", 1)
    assert text.startswith("KeyError: 'no such file' (at ")
    assert "test_own.py:" in text
    assert text in capsys.readouterr().out
    assert result.table[["diverged", "n", "mean"]].to_numpy().tolist() == [[1, 2, 1.0]]
    assert sorted(records(tmp_path)["seed"]) == [0, 2, 3]


@pytest.mark.parametrize("name", ["schedule-free", "msam", "hatam"])
def test_parameter_groups(name: str, tmp_path: Path) -> None:
    """Where evaluation is at other weights than training, too."""

    def score(make_optimizer, seed: int) -> float:
        p = torch.nn.Parameter(torch.ones(2))
        optimizer = make_optimizer([{"params": [p]}])
        for _ in range(3):
            p.grad = torch.ones(2)
            optimizer.step()
        with evaluating(optimizer):
            return p.detach().sum().item()

    assert means(compare(score, [name], seeds=1, folder=tmp_path))[0] < 2


def test_processes_give_what_one_gives(tmp_path: Path) -> None:
    alone = compare(train, ["adamw", ("own", HATAM)], seeds=2, folder=tmp_path / "1", options={"lr": 0.1})
    together = compare(train, ["adamw", ("own", HATAM)], seeds=2, folder=tmp_path / "2", options={"lr": 0.1}, jobs=2)
    assert list(together.table["label"]) == ["adamw:lr=0.1", "own:lr=0.1"]
    for label in together.table["label"]:
        assert scores(alone, label) == scores(together, label)


class Constant:
    """A train function with a number of its own."""

    def __init__(self, offset: float) -> None:
        self.offset = offset

    def __call__(self, make_optimizer: Any, seed: int) -> float:
        return seed + self.offset


def shifted(make_optimizer: Any, seed: int, offset: float = 0.0) -> float:
    make_optimizer([torch.nn.Parameter(torch.ones(1))])
    return seed + offset


def closure(offset: float) -> Any:
    return lambda make_optimizer, seed: seed + offset


class Slotted:
    """The same in a slot."""

    __slots__ = ("offset",)

    def __init__(self, offset: float) -> None:
        self.offset = offset

    def __call__(self, make_optimizer: Any, seed: int) -> float:
        return seed + self.offset


@pytest.mark.parametrize(
    "made",
    [
        Constant,
        Slotted,
        closure,
        lambda offset: Constant(offset).__call__,
        lambda offset: partial(shifted, offset=offset),
        lambda offset: partial(shifted, offset=np.float32(offset)),
    ],
)
def test_what_is_bound_to_a_function_tells_its_runs_apart(tmp_path: Path, made: Any) -> None:
    found = [compare(made(x), ["adamw"], 2, folder=tmp_path, name="n") for x in (0.0, 9.0, 0.0)]
    assert [means(each) for each in found] == [[0.5], [9.5], [0.5]]
    assert len(records(tmp_path)) == 4


def test_a_factory_of_ones_own_tells_its_runs_apart(tmp_path: Path) -> None:
    optimizers: list[torch.optim.Optimizer] = []

    def score(make_optimizer: Any, seed: int) -> float:
        optimizers.append(make_optimizer([torch.nn.Parameter(torch.ones(2, 2))]))
        return float(seed)

    factories = [torch.optim.SGD, partial(torch.optim.SGD, momentum=0.9), torch.optim.Adagrad, torch.optim.Muon]
    for factory in (*factories, *factories):
        compare(score, [("own", factory)], 1, folder=tmp_path)
    assert [type(o).__name__ for o in optimizers] == ["SGD", "SGD", "Adagrad", "Muon"]


OWN = """
import torch

FACTOR = {factor}

class Base(torch.optim.SGD):
    number = {number}

    def factor(self):
        return {base} + self.number

class Own(Base):
    def step(self, closure=None):
        self.seen = FACTOR * self.factor()

def score(make_optimizer, seed):
    optimizer = make_optimizer([torch.nn.Parameter(torch.ones(1))])
    optimizer.step()
    return STEPS * optimizer.seen + seed

STEPS = {steps}
"""


@pytest.mark.parametrize("from_file", [True, False])
def test_a_class_its_bases_and_constants_tell_their_runs_apart(
    tmp_path: Path, from_file: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = [{}, {"factor": 5}, {"base": 7}, {"steps": 11}, {"number": 1}] if from_file else [{}, {"factor": 5}]
    seen = []
    for i, change in enumerate([*changes, {}]):
        module = ModuleType("own_text")
        monkeypatch.setitem(sys.modules, "own_text", module)
        module.__file__ = str(tmp_path / f"own_{i}.py")
        text = OWN.format(**({"factor": 1, "base": 2, "steps": 3, "number": 0} | change))
        if from_file:
            Path(module.__file__).write_text(text, encoding="utf-8")
        exec(compile(text, module.__file__, "exec"), vars(module))
        result = compare(module.score, [("own", module.Own)], 2, folder=tmp_path / "runs")
        seen += means(result)
    assert seen == ([6.5, 30.5, 21.5, 22.5, 9.5, 6.5] if from_file else [6.5, 30.5, 6.5])
    assert len(records(tmp_path / "runs")) == 2 * len(changes)


def test_foreign_functions_and_class_methods_tell_their_runs_apart() -> None:
    class One:
        @classmethod
        def make(cls) -> None: ...

    class Two(One): ...

    made = [One.make, Two.make, *(partial(shifted, x) for x in (torch.relu, torch.tanh, torch.float32, torch.float64))]
    assert len({digest(one) for one in made}) == len(made)


def test_names_are_shown_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def train(make_optimizer: Any, seed: int) -> dict[str, float]:
        return {"speed [/s] :two:": 1.0 + seed}

    compare(train, ["adamw", ("mine[a]", torch.optim.SGD)], 2, options={"lr": 0.1}, folder=tmp_path)
    printed = capsys.readouterr().out
    assert printed.startswith("speed [/s] :two:: mean")
    assert "mine[a]:lr=0.1" in printed


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    result = compare(shifted, ["adamw"], np.int64(2), options={"lr": np.array([0.1, 0.2])}, folder=tmp_path)
    assert list(result.table["label"]) == ["adamw:lr=0.1", "adamw:lr=0.2"]
    result = compare(shifted, ["adamw"], 1, options={"lr": np.float64(0.5)}, folder=tmp_path)
    assert list(result.table["label"]) == ["adamw:lr=0.5"]


def test_options_in_the_name_of_a_factory_are_its_own(tmp_path: Path) -> None:
    given: list[dict[str, Any]] = []

    def factory(params: Any, **options: Any) -> torch.optim.Optimizer:
        given.append(options)
        return torch.optim.SGD(params, **options)

    def score(make_optimizer: Any, seed: int) -> float:
        return make_optimizer([torch.nn.Parameter(torch.ones(1))]).param_groups[0]["lr"]

    own = [("own:lr=0.1", factory), ("own:lr=0.2,nesterov=False", factory)]
    result = compare(score, own, np.arange(1), options={"lr": 0.01, "momentum": 0.9}, folder=tmp_path)
    assert means(result) == [0.1, 0.2]
    assert given == [{"lr": 0.1, "momentum": 0.9}, {"lr": 0.2, "nesterov": False, "momentum": 0.9}]


def test_two_names_of_the_same_options_are_refused(tmp_path: Path) -> None:
    lr = _contestants("adamw", {})[0].options["lr"]
    with pytest.raises(ValueError, match=re.escape(f"'adamw' and 'adamw:lr={lr}' have the same options")):
        compare(lambda make_optimizer, seed: 0.0, ["adamw", f"adamw:lr={lr}"], 1, folder=tmp_path)


def test_typed_in_functions_need_one_process(tmp_path: Path) -> None:
    code = f"""
from hatam.bench import compare
def score(make_optimizer, seed):
    return {{1: float(seed)}}
compare(score, ["adamw"], 2, folder={str(tmp_path)!r})
compare(score, ["adamw"], 2, folder={str(tmp_path / "2")!r}, jobs=2)
"""
    done = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, check=False)
    assert "jobs=2 needs functions that another process can import (they were typed in" in done.stderr
    assert len(records(tmp_path)) == 2


def test_processes_need_what_they_can_import(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"jobs=2 needs functions .* top of a module"):
        compare(lambda make_optimizer, seed: 0.0, folder=tmp_path, jobs=2)


@pytest.mark.parametrize(
    ("contenders", "message"),
    [
        (["adamw", "k-sam"], "'k-sam' owns the whole step.* hatam compare --task"),
        (["ademamix"], "'ademamix' owns the whole step, or depends on its place in the run"),
        (["adamw:schedule=late"], "schedule of 'adamw:schedule=late' has no effect here"),
        ("adamw", "must be a list of contenders"),
        (["adamw", "adamw"], "a name twice"),
        (["hatm"], "Did you mean 'hatam'"),
        ([("SGD: nesterov", torch.optim.SGD)], "' nesterov' .* is not of the form option=value"),
        (["adamw", torch.optim.NAdam], r"NAdam.* must be a name .* or a pair \(name, factory\)"),
    ],
)
def test_contenders_that_cannot_be_compared_are_refused(tmp_path: Path, contenders: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compare(train, contenders, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_seeds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seeds=0 is none"):
        compare(train, ["adamw"], 0, folder=tmp_path)


@pytest.mark.parametrize("contender", ["hatam:travel=0.0", "msam", ("own", lambda params: HATAM(params, travel=0.0))])
def test_evaluating_gives_the_point_to_evaluate(contender) -> None:
    w = torch.nn.Parameter(torch.ones(3, 1))
    optimizer = make_optimizer(_contestants(contender, {})[0], [w])
    for _ in range(4):
        w.grad = torch.tensor([[1.0], [2.0], [3.0]])
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.8
    before = w.detach().clone()
    with optimizer.straightened():
        expected = w.detach().clone()
    with evaluating(optimizer):
        assert torch.equal(w, expected)
        assert not torch.allclose(w, before)
    assert torch.equal(w, before)
    with evaluating(torch.optim.SGD([w], lr=0.1)):
        assert torch.equal(w, before)


def test_options_are_a_grid_and_a_contenders_own_count_more() -> None:
    grid = {"lr": [0.1, 0.2], "eps": 1e-6}
    assert [c.label for c in _contestants("adamw:lr=0.5", grid)] == ["adamw:lr=0.5,eps=1e-06"]
    made = _contestants("adamw", grid)
    assert [(c.options["lr"], c.options["eps"]) for c in made] == [(0.1, 1e-6), (0.2, 1e-6)]
    (group,) = make_optimizer(made[1], [torch.nn.Parameter(torch.ones(1))]).param_groups
    assert (group["lr"], group["eps"], group["weight_decay"]) == (0.2, 1e-6, 0.15)


def test_betas_may_be_given_as_torch_takes_them() -> None:
    (made,) = _contestants("hatam", {"betas": (0.8, 0.999)})
    assert made.label == "hatam:beta1=0.8,beta2=0.999"
    assert make_optimizer(made, [torch.nn.Parameter(torch.ones(1))]).param_groups[0]["betas"] == (0.8, 0.999)
    (own,) = _contestants(("own", torch.optim.AdamW), {"betas": (0.8, 0.999)})
    assert own.options == {"betas": (0.8, 0.999)}
    with pytest.raises(ValueError, match=re.escape("betas=[0.8, 0.9] must be a pair such as (0.9, 0.95)")):
        _contestants("hatam", {"betas": [0.8, 0.9]})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnist1d-mpl", "Did you mean 'mnist1d-mlp'"),
        ("nowhere/task.py", "write nowhere/task.py:TASK"),
        ("nowhere/task.py:TASK", "there is no file 'nowhere/task.py'"),
        ("no_such_module:TASK", "there is no module 'no_such_module'"),
        ("hatam.bench.tasks.mnist1d:TASK", "Did you mean 'TASKS'"),
        ("hatam.bench.tasks.mnist1d:TASKS", "is a list: it must be a hatam.bench.Task"),
    ],
)
def test_a_task_that_is_not_there_is_named(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find(name)


def test_a_task_may_be_made_by_a_function_and_a_changed_file_is_run_again(tmp_path: Path) -> None:
    file = tmp_path / "task_by_function.py"
    file.write_text("from hatam.bench.tasks import all_tasks\ndef make(): return all_tasks()['mnist1d-mlp']\n")
    task = find(f"{file}:make")
    assert (task.name, task.steps) == (f"{file}:make", 2000)
    before = make_run(task, "adamw", 0).key
    assert make_run(task, "adamw", 0).key == before
    file.write_text(file.read_text() + "# changed\n")
    assert make_run(task, "adamw", 0).key != before


def test_sam_in_a_loop_of_ones_own_takes_a_closure(tmp_path: Path) -> None:
    """Two gradients a step, the second at distance ρ; the others take the closure too."""
    seen: list[float] = []

    def score(make_optimizer: Any, seed: int) -> float:
        w = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        optimizer = make_optimizer([w])

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            seen.append(float(w.detach().norm()))
            loss = w.square().sum()
            loss.backward()
            return loss

        return optimizer.step(closure).item()

    result = compare(score, ["adamw", "sam:rho=0.5", "hatam", "msam"], 1, folder=tmp_path)
    assert seen == pytest.approx([5.0, 5.0, 5.5, 5.0, 5.0])
    assert means(result) == [25.0] * 4


def test_importing_the_package_is_cheap() -> None:
    code = "import sys, hatam.bench; print([m for m in sys.modules if m.startswith(('scipy', 'rich', 'hatam.bench.'))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
