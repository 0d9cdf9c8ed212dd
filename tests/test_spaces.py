"""The search spaces: the committed file, and what is said of a wrong one."""

from __future__ import annotations

import re
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from hatam.bench.contenders import CONTENDERS, parse
from hatam.bench.spaces import PATH, complete, load, space
from hatam.bench.tasks import all_tasks

MNIST1D = tuple(name for name in all_tasks() if name.startswith("mnist1d"))


@pytest.mark.parametrize("contender", CONTENDERS)
def test_everyone_tunes_what_everyone_has(contender: str) -> None:
    for task in all_tasks():
        tuned = space(contender, task)
        assert {"lr", "weight_decay"} <= set(tuned)
        assert tuned.keys() & {"beta1", "momentum"}
        assert len(tuned) <= 5
        assert tuned["lr"].log
        width = tuned["lr"].high / tuned["lr"].low  # nobody's is searched more finely
        assert width == pytest.approx(space("adamw", task)["lr"].high / space("adamw", task)["lr"].low, rel=0.1)


@pytest.mark.parametrize("task", MNIST1D)
@pytest.mark.parametrize("contender", CONTENDERS)
def test_defaults_can_be_found(contender: str, task: str) -> None:
    options = {**CONTENDERS[contender].every, **parse(contender, task)[1]}
    for option, distribution in space(contender, task).items():
        value = options[option]
        if isinstance(distribution, CategoricalDistribution):
            assert value in distribution.choices
        else:
            assert distribution.low <= value <= distribution.high


def test_who_has_no_family_is_of_mnist1d() -> None:
    assert set(all_tasks()) - set(load().by_task) == set(MNIST1D)


def test_what_is_special_wins() -> None:
    assert space("sam", "mnist1d-mlp")["lr"] == FloatDistribution(1.8e-3, 0.5, log=True)
    assert space("sam", "minilm")["lr"] == FloatDistribution(6e-6, 1.7e-3, log=True)
    assert space("lion", "mnist1d-mlp")["lr"] == FloatDistribution(1.8e-4, 0.05, log=True)
    assert space("lion", "minilm")["lr"] == FloatDistribution(6e-7, 1.7e-4, log=True)
    assert space("adamw-no-momentum", "minilm")["beta1"] == CategoricalDistribution([0.0])
    assert space("adamw", "of-my-own") == space("adamw", "mnist1d-mlp")


def test_a_trial_is_completed_by_the_defaults() -> None:
    options = complete("k-sam", "mnist1d-conv", {"lr": 0.01, "k_fraction": 0.25})
    assert options == {**parse("k-sam", "mnist1d-conv")[1], "lr": 0.01, "k_fraction": 0.25}
    assert options["rho"] == 0.05  # the default where there is no MLP
    with pytest.raises(ValueError, match="Did you mean 'rho'"):
        complete("sam", "mnist1d-conv", {"roh": 1.0})
    with pytest.raises(ValueError, match="unknown tuned option of sam 'beta2'"):
        complete("sam", "mnist1d-conv", {"beta2": 0.9})


def test_a_later_option_is_left_out_at_its_default() -> None:
    """So that a trial finds the records of runs that did not name it."""
    usual = parse("schedule-free", "mnist1d-mlp")[1]
    assert complete("schedule-free", "mnist1d-mlp", {"r": 0.0}) == usual
    assert complete("schedule-free", "mnist1d-mlp", {"r": 2.0}) == {**usual, "r": 2.0}


def test_optuna_takes_a_space() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    trials = [study.ask(space("hatam", "digits")) for _ in range(20)]
    assert {trial.params["horizon"] for trial in trials} == {0.5, 2.0, 8.0}
    assert all(3e-5 <= trial.params["lr"] <= 0.17 for trial in trials)


SAM_RHO = "rho = { low = 0.01, high = 2.0, log = true }"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[contender.lion]", "[contender.lino]", "unknown contender 'lino'. Did you mean 'lion'?"),
        ("[contender.nadam]\n", "", "there is no table [contender.nadam]"),
        (SAM_RHO, SAM_RHO.replace("rho", "roh"), "unknown option of sam 'roh'. Did you mean 'rho'?"),
        ("[shared]\nlr", "[shared]\nspeed = { choices = [1] }\nlr", "unknown option of [shared] 'speed'"),
        (SAM_RHO, "rho = { low = 2.0, high = 0.5 }", "sam, rho = {'low': 2.0, 'high': 0.5}: low=2.0 must be below"),
        (SAM_RHO, "rho = { low = 2.0, high = 2.0 }", "a single value is choices = [2.0]"),
        (SAM_RHO, "rho = { low = 0.0, high = 2.0, log = true }", "low=0.0 must be in (0, high) where log = true"),
        (SAM_RHO, "rho = { low = 0.1, high = inf }", "inf is not a finite number; use choices"),
        (SAM_RHO, 'rho = { low = "0.1", high = 2.0 }', "'0.1' is not a finite number"),
        (SAM_RHO, "rho = { low = 0.1, high = 2.0, log = 1 }", "log=1 must be true or false"),
        (SAM_RHO, "rho = { choices = [] }", "sam, rho = {'choices': []}: choices must be a list of at least one value"),
        (SAM_RHO, "rho = { choices = 0.5 }", "choices must be a list"),
        (SAM_RHO, "rho = 0.5", "sam, rho = 0.5: a range is { low"),
        (SAM_RHO, "rho = { low = 0.1 }", "a range is { low"),
        (SAM_RHO, "rho = { low = 0.1, high = 2.0, step = 0.1 }", "a range is { low"),
        (SAM_RHO, "rho = { low = 0.6, high = 2.0 }", "sam, rho: its default, 0.05, is outside {'low': 0.6"),
        (SAM_RHO, "rho = { low = 0.01, high = 0.1 }", "sam, rho: its default on mnist1d-mlp, 0.5, is outside"),
        (SAM_RHO, "rho = { choices = [0.1, 0.2] }", "sam, rho: its default, 0.05, is outside {'choices': [0.1, 0.2]}"),
        ("[shared]\n", "[all]\n", "unknown option of the file 'all'"),
        ("[shared]\n", "shared = 1\n[contender.x]\n", "[shared] must be a table, not 1"),
        ('tasks = ["minilm"]', "", "tasks = None in a [[family]] must be a list"),
        ('tasks = ["minilm"]', 'tasks = "minilm"', "tasks = 'minilm' in a [[family]] must be a list"),
        ('tasks = ["minilm"]', 'tasks = ["digits"]', "task 'digits' is in two families"),
        (
            "[family.shared]\nlr = { low = 6e-6, high = 1.7e-3, log = true }",
            "[family.shared]\nlr = { choices = [] }",
            "[shared] on minilm, lr = {'choices': []}",
        ),
        ("[shared]\n", "[shared\n", "Expected ']'"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = PATH.read_text(encoding="utf-8")
    changed = text.replace(old, new, 1)
    assert changed != text
    path = tmp_path / "spaces.toml"
    path.write_text(changed, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        load(path)
    assert str(path) in str(raised.value)
