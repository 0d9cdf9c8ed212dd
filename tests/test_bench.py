"""The comparison: each contender against its definition, runs, records, tables, and the command."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from rich.table import Table
from typer.testing import CliRunner

from hatam.bench import running, schedules
from hatam.bench.cli import app, make_run
from hatam.bench.contenders import CONTENDERS, parse
from hatam.bench.records import Store
from hatam.bench.report import tables
from hatam.bench.stats import estimate, paired
from hatam.bench.tasks import Data, Split, Task, all_tasks
from hatam.bench.terminal import show
from hatam.bench.training import train

ROOT = Path(__file__).parent.parent


def make_batch(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(32, 40, generator=generator), torch.randint(10, (32,), generator=generator)


def build(spec: str, task_name: str = "mnist1d-mlp"):
    task = all_tasks()[task_name]
    torch.manual_seed(0)
    model = task.model()
    contender, options = parse(spec, task_name)
    return task, model, contender.train(model, task.loss, options)


def weights_after(spec: str, steps: int = 6) -> torch.Tensor:
    _, model, trainer = build(f"{spec},schedule=constant" if ":" in spec else f"{spec}:schedule=constant")
    lr = trainer.optimizer.param_groups[0]["lr"]
    for seed in range(steps):
        trainer.arrive(seed, steps, 0.0, lr)
        trainer.step(*make_batch(seed))
    with trainer.evaluation():
        return torch.cat([p.detach().flatten().clone() for p in model.parameters()])


@pytest.mark.parametrize(
    ("spec", "same"),
    [
        ("sam:rho=0", "adamw"),
        ("msam:rho=0", "adamw"),
        ("hatam:gamma=0", "adamw"),
        ("atam:gamma=0", "adamw"),
        ("k-sam:k_fraction=1", "sam"),
        ("adamw-ema:decay=0", "adamw"),
        ("gpa:mu_x=0", "adamw"),
        ("ema-nesterov:ahead=0", "adamw"),
        ("ema-nesterov:rest=1", "adamw"),
        ("late-sam:share=0", "adamw"),
        ("late-sam:share=1", "sam"),
        ("ademamix:alpha=0", "adamw"),
    ],
)
def test_limits_of_contenders(spec: str, same: str) -> None:
    torch.testing.assert_close(weights_after(spec), weights_after(same), rtol=1e-4, atol=1e-5)


def test_contenders_differ() -> None:
    outcomes = [
        weights_after(name) for name in CONTENDERS if name not in {"hatam", "hatam-relative"}
    ]  # AdamW, till lr falls
    for i, a in enumerate(outcomes):
        for b in outcomes[:i]:
            assert not torch.allclose(a, b, rtol=1e-4, atol=1e-6)


def test_ksam_uses_the_hardest_samples_alone() -> None:
    task, model, trainer = build("k-sam:k_fraction=0.25")
    x, y = make_batch()
    losses = task.loss(model(x), y)
    hardest = set(losses.topk(8).indices.tolist())
    seen: list[set[int]] = []
    gradient = trainer.gradient

    def spy(some: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        seen.append({int((x == row).all(1).nonzero()) for row in some})
        return gradient(some, targets)

    trainer.gradient = spy
    trainer.step(x, y)
    assert seen == [hardest, hardest]
    assert trainer.samples_differentiated == 16


def test_msam_is_displaced_by_rho_along_the_momentum() -> None:
    _, model, trainer = build("msam:rho=2")
    for seed in range(3):
        trainer.step(*make_batch(seed))
    displaced = [p.detach().clone() for p in model.parameters()]
    m = [trainer.optimizer.state[p]["exp_avg"] for p in model.parameters()]
    norm = torch.cat([x.flatten() for x in m]).norm()
    with trainer.evaluation():
        for p, d, x in zip(model.parameters(), displaced, m, strict=True):
            torch.testing.assert_close(d - p.detach(), -2 * x / norm, rtol=1e-3, atol=1e-5)
    for p, d in zip(model.parameters(), displaced, strict=True):
        assert torch.equal(p, d)


@pytest.mark.parametrize(
    ("spec", "nearest"), [("hatm", "hatam"), ("hatam:gama=1", "gamma"), ("sam:roh=1", "rho"), ("adamww", "adamw")]
)
def test_unknown_names_are_answered_with_the_nearest(spec: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"Did you mean '{nearest}'"):
        parse(spec, "mnist1d-mlp")


def test_published_train_split_is_the_generators_own() -> None:
    data = all_tasks()["mnist1d-mlp"].data()
    assert [len(split.y) for split in data] == [4000, 4000, 10000]
    assert data.train.y[:10].tolist() == [2, 6, 4, 5, 6, 6, 6, 0, 3, 1]  # of the published file
    assert all(len(split.y.unique()) == 10 for split in data)


def test_schedule_rises_and_ends_at_zero() -> None:
    factors = [schedules.cosine(step, 100, 0.05) for step in range(100)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(a > b for a, b in itertools.pairwise(factors[4:]))
    assert factors[-1] == 0


def test_a_run_is_reproducible_and_diverging_is_a_result() -> None:
    task = all_tasks()["digits"]
    first, second = (train(task, make_run(task, "hatam", 0, 30)) for _ in range(2))
    same = {"test", "validation", "train_loss", "curve", "shifts", "lambda_max", "key"}
    assert {key: first[key] for key in same} == {key: second[key] for key in same}
    assert first["gradients_per_step"] == 1
    broken = train(task, make_run(task, "adamw:lr=1e30", 0, 30))
    assert broken["status"] == "diverged"
    assert math.isnan(broken["lambda_max"])


def test_without_the_extra_the_command_says_how_to_get_it() -> None:
    code = "import sys; sys.modules['typer'] = None; from hatam.bench.__main__ import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip() == "hatam: the comparison needs typer: pip install 'hatam[bench]'"


def test_statistics_against_known_values() -> None:
    assert estimate([1.0]).mean == 1.0
    assert math.isnan(estimate([1.0]).low)
    assert paired({1: 1.0}, {1: 0.0}) is None
    assert paired({1: 1.0, 2: 1.0, 9: 5.0}, {1: 1.0, 2: 1.0}).p == 1.0
    same = paired({1: 2.0, 2: 2.0}, {1: 1.0, 2: 1.0})  # which tells nothing of their spread
    assert same.mean == 1.0
    assert math.isnan(same.p)
    assert math.isnan(same.low)
    rounded = paired({1: 97.2000001, 2: 97.0}, {1: 96.9, 2: 96.7000002})  # means in float32 of whole numbers of answers
    assert rounded.mean == pytest.approx(0.3)
    assert math.isnan(rounded.p)
    assert paired({1: 97.2000001, 2: 97.0}, {1: 97.2, 2: 97.0000001}).p == 1.0
    assert paired({1: 1e6 + 0.1, 2: 1e6 + 0.6}, {1: 1e6, 2: 1e6}).high > 1.0  # more than float32's rounding
    for lost in (math.nan, math.inf):  # not the difference of those alone that survived
        assert paired({1: 2.0, 2: 2.0, 3: lost}, {1: 1.0, 2: 1.0, 3: 1.0}) is None
        assert paired({1: 2.0, 2: 2.0, 3: 1.0}, {1: 1.0, 2: 1.0, 3: lost}) is None


def run_cli(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.mark.parametrize("command", [[], ["compare"], ["table"], ["report"], ["tasks"], ["contenders"]])
def test_every_help_has_an_example(command: list[str]) -> None:
    result = run_cli(*command, "--help")
    assert result.exit_code == 0
    assert "Example: hatam" in result.output


def test_compare_end_to_end_and_resume(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    arguments = ["compare", "--task", "digits", "--seeds", "2", "--steps", "20", "--jobs", "2"]
    arguments += ["--contender", "adamw", "--contender", "hatam:gamma=0.1", "--records", str(tmp_path)]
    logs = tmp_path_factory.mktemp("logs")
    done = jobs.Started("hatam.bench", *arguments, folder=logs)
    assert done.wait() == 0, done.output
    assert all(len(line) <= 80 for line in done.output.splitlines() if "±" in line)
    for kind in ("curves", "cost"):
        assert "hatam:gamma=0.1" in (tmp_path / f"{kind}-digits.svg").read_text()
    written = Store(tmp_path).read()
    assert jobs.Started("hatam.bench", *arguments, folder=logs).wait() == 0
    assert list(Store(tmp_path).read()["started"]) == list(written["started"])
    rows = tables.summary(written)
    assert list(rows["label"]) == ["adamw", "hatam:gamma=0.1"]
    assert list(rows["n"]) == [2, 2]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_comparison_leaves_whole_records(tmp_path: Path, how: signal.Signals) -> None:
    arguments = ["compare", "--task", "digits", "--seeds", "200", "--steps", "20", "--contender", "adamw"]
    arguments += ["--records", str(tmp_path), "--jobs", "1"]
    started = jobs.Started("hatam.bench", *arguments, folder=tmp_path)
    while len(Store(tmp_path).read()) < 2:
        assert started.process.is_alive(), started.output
        time.sleep(0.05)
    os.kill(started.pid, how)
    assert started.wait() == (130 if how is signal.SIGINT else -signal.SIGKILL)
    assert len(Store(tmp_path).read()) >= 2
    if how is signal.SIGINT:
        assert "interrupted" in started.output
        assert "Traceback" not in started.output


def test_a_task_that_raises_is_reported_and_holds_up_nobody(tmp_path: Path) -> None:
    task, store = all_tasks()["digits"], Store(tmp_path)
    runs = [make_run(task, "adamw", 0, 5), make_run(task, "k-sam:k_fraction=2", 0, 5)]
    failed = running.run_all(runs, store, 1, lambda run, steps: None)
    assert [(run.contender, "k_fraction=2" in error) for run, error in failed] == [("k-sam", True)]
    assert running.missing(runs, store) == [runs[1]]


def compare_command(tmp_path: Path, *contenders: str, steps: str = "2", seeds: str = "2", task: str = "digits") -> Any:
    chosen = [word for contender in contenders for word in ("--contender", contender)]
    arguments = ["compare", "--task", task, "--steps", steps, "--seeds", seeds, "--records", str(tmp_path), *chosen]
    return CliRunner().invoke(app, [*arguments, "--jobs", "1"], env={"COLUMNS": "200"})


@pytest.mark.parametrize("twice", [("adamw", "adamw"), ("hatam", "hatam:gamma=0.2")])
def test_the_same_options_are_not_counted_twice(tmp_path: Path, twice: tuple[str, str]) -> None:
    assert "have the same options" in str(compare_command(tmp_path, *twice).exception)
    assert not list(tmp_path.iterdir())


def test_rows_have_the_names_of_this_command(tmp_path: Path) -> None:
    compare_command(tmp_path, "adamw:lr=0.02")  # what it is by default
    output = compare_command(tmp_path, "adamw", "gpa").output
    assert "adamw:lr" not in output
    assert "±" in [line for line in output.splitlines() if "gpa" in line][-1]  # its difference to AdamW


def test_a_comparison_with_divergence_and_with_everyone(tmp_path: Path) -> None:
    """There are more contenders than colours."""
    result = compare_command(tmp_path / "nan", "adamw", "gpa:lr=1e30", steps="30")
    assert result.exit_code == 0, result.output
    assert "gpa:lr=1e30 (2 diverged)" in result.output
    assert (tmp_path / "nan" / "curves-digits.svg").exists()
    assert compare_command(tmp_path / "all", seeds="1").exit_code == 0


def test_what_a_contender_refuses_is_said_once_and_before_training(tmp_path: Path) -> None:
    error = compare_command(tmp_path, "adamw", "hatam:gamma=-1.0", "adamw:lr=-1.0").exception
    assert str(error).startswith("contender 'hatam:gamma=-1.0': gamma=-1.0 is out of range")
    assert not list(tmp_path.iterdir())
    compare_command(tmp_path, "adamw")
    assert "2 of 2 runs have records already" in compare_command(tmp_path, "adamw").output


def one_number(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs.square().mean()


def test_a_task_that_cannot_be_scored_is_refused_before_training() -> None:
    task = all_tasks()["digits"]
    run = make_run(task, "adamw", 0, 5)
    for changed, batch_size, message in (
        ({}, 100_000, "batch_size=100000 of 'digits' must be in"),
        ({"loss": one_number}, 20, r"loss of 'digits' gives shape \(\) .* for 2 samples: it must give one"),
        ({"loss": lambda outputs, y: outputs[:, :2]}, 20, r"loss of 'digits' gives shape \(2, 2\)"),
        ({"metric": one_number}, 20, r"metric of 'digits' gives shape \(\)"),
        ({"metric": lambda outputs, y: y > 0}, 20, r"metric of 'digits' gives .* torch.bool"),
    ):
        with pytest.raises(ValueError, match=message):
            train(dataclasses.replace(task, **changed), dataclasses.replace(run, batch_size=batch_size))


def test_a_task_is_plain_data() -> None:
    """What a user's own task needs: no registry, no base class."""
    x, y = make_batch()
    split = Split(x, y)
    base = all_tasks()["mnist1d-mlp"]
    task: Task = dataclasses.replace(base, name="own", data=lambda: Data(split, split, split), batch_size=8, steps=10)
    assert train(task, make_run(task, "adamw", 0))["status"] == "ok"


def test_a_table_is_whole_on_a_narrow_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    table = Table("contender", "difference")
    table.add_row("hatam:gamma=0.5,lr=0.002,modulator_cap=3.0", "-0.0336 [-0.0981, +0.0309]")
    show(table)
    printed = capsys.readouterr().out
    assert "hatam:gamma=0.5,lr=0.002,modulator_cap=3.0" in printed
    assert "-0.0336 [-0.0981, +0.0309]" in printed
