"""What a run does to its inputs, and to BatchNorm where it is evaluated: the same for all contenders."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from hatam.bench.contenders import parse
from hatam.bench.records import Run
from hatam.bench.tasks import Data, Split, Task
from hatam.bench.tasks.scores import cross_entropy, percent_correct
from hatam.bench.trainers import Trainer
from hatam.bench.training import evaluating, train

STEPS, BATCH = 12, 8


def data() -> Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 5, generator=generator)
    return Data(*(Split(part, (part.sum(1) > 0).long()) for part in x.split(20)))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2))


def jitter(x: Tensor, generator: torch.Generator) -> Tensor:
    return x + torch.randn(x.shape, generator=generator)


TASK = Task("own", "", data, network, cross_entropy, percent_correct, "accuracy, %", STEPS, BATCH, sharpness=False)


def run_of(spec: str, seed: int = 3) -> Run:
    contender, options = parse(spec, "mnist1d-mlp-plain")
    return Run("own", spec, contender.name, {**options, "lr": 0.01}, seed, STEPS, BATCH, TASK.warmup)


def seen(task: Task, spec: str, monkeypatch: pytest.MonkeyPatch, seed: int = 3) -> Tensor:
    """The inputs of every gradient of a run."""
    found: list[Tensor] = []
    gradient = Trainer.gradient
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "gradient", lambda self, x, y: found.append(x) or gradient(self, x, y))
        train(task, run_of(spec, seed))
    return torch.stack(found)


def test_augmentation_depends_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """SAM's two gradients of a step are of the same inputs, and the order of the samples is that without it."""
    task = dataclasses.replace(TASK, augment=jitter)
    adamw, sam, hatam = (seen(task, spec, monkeypatch) for spec in ("adamw", "sam", "hatam"))
    assert torch.equal(adamw, hatam)
    assert torch.equal(sam[::2], adamw)
    assert torch.equal(sam[1::2], adamw)
    assert not torch.equal(seen(task, "adamw", monkeypatch, seed=4), adamw)
    noise = adamw - seen(TASK, "adamw", monkeypatch)
    assert noise.std() == pytest.approx(1, abs=0.15)
    assert len(noise[:, 0].unique(dim=0)) == STEPS


def test_augmentation_draws_from_numbers_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of the order, and not torch's, from which dropout draws."""
    drawn: list[Tensor] = []

    def augment(x: Tensor, generator: torch.Generator) -> Tensor:
        state = torch.get_rng_state()
        drawn.append(torch.randperm(20, generator=generator))
        assert torch.equal(torch.get_rng_state(), state)
        return x

    x = seen(dataclasses.replace(TASK, augment=augment), "adamw", monkeypatch)[0]
    assert not torch.equal(data().train.x[drawn[0][:BATCH]], x)


@pytest.mark.parametrize("spec", ["adamw", "sam", "schedule-free", "adamw-ema", "hatam:travel=0"])
def test_statistics_are_those_of_the_training_data_where_the_model_is_evaluated(spec: str) -> None:
    torch.manual_seed(0)
    contender, options = parse(spec, "mnist1d-mlp-plain")
    model, splits = network(), data()
    trainer = contender.train(model, cross_entropy, options)
    for step in range(6):
        trainer.arrive(step, STEPS, 0.1, 0.01)
        trainer.step(*(tensor[:BATCH] for tensor in splits.train))
    before = [buffer.clone() for buffer in model.buffers()]
    with evaluating(trainer, splits, 10):
        with torch.no_grad():
            hidden = model[0](splits.train.x[:20])
        torch.testing.assert_close(model[1].running_mean, hidden.mean(0))
        torch.testing.assert_close(model[1].running_var, torch.stack([h.var(0) for h in hidden.split(10)]).mean(0))
    assert all(map(torch.equal, before, model.buffers()))
    assert not torch.allclose(before[0], hidden.mean(0))


@pytest.mark.parametrize("spec", ["adamw", "schedule-free", "hatam:travel=0"])
def test_looking_more_often_changes_nothing(spec: str) -> None:
    results = [train(dataclasses.replace(TASK, curve_points=n), run_of(spec)) for n in (1, STEPS)]
    for key in ("status", "validation", "test", "train"):
        assert results[0][key] == results[1][key]
