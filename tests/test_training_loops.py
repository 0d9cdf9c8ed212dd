"""Whole trainings in loops that people write: resumed, they end where an uninterrupted one ends, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from conftest import bits, state_bits, through_a_file
from torch import Tensor, nn
from torch.nn import functional as F

from hatam import HATAM, follow, param_groups
from hatam.bench.tasks import all_tasks, minilm

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
Build = Callable[[], tuple[nn.Module, HATAM]]


def end_of(build: Build, step: Callable[[nn.Module, HATAM, int], None], steps: int, *, interrupted: bool) -> Any:
    """Train; where it is interrupted, go on with everything made anew from a checkpoint of the point to evaluate."""
    model, optimizer = build()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for i in range(steps):
        if i == steps // 2:
            optimizer.eval()  # the uninterrupted training evaluates there, too
            if interrupted:
                saved = {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
                saved = through_a_file({"model": model.state_dict(), **saved})
                model, optimizer = build()
                schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
                model.load_state_dict(saved["model"])
                optimizer.load_state_dict(saved["optimizer"])
                schedule.load_state_dict(saved["schedule"])
            optimizer.train()
        step(model, optimizer, i)
        schedule.step()
    with optimizer.straightened():
        z = [bits(p) for p in model.parameters()]
    optimizer.eval()
    assert [bits(p) for p in model.parameters()] == z
    return z, state_bits(optimizer)


def resumes(build: Build, step: Callable[[nn.Module, HATAM, int], None], steps: int) -> None:
    whole, resumed = (end_of(build, step, steps, interrupted=interrupted) for interrupted in (False, True))
    assert whole == resumed


@pytest.mark.compatible("torch.compile", "a compiled model, accumulation, clipping: resumed, bit for bit")
def test_a_compiled_model_with_accumulation() -> None:
    def build() -> tuple[nn.Module, HATAM]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 50))
        return model, HATAM(param_groups(model, weight_decay=0.1), lr=0.01, gamma=0.5, travel=0.1)

    def step(model: nn.Module, optimizer: HATAM, i: int) -> None:
        compiled = torch.compile(model, backend="aot_eager")
        tokens = torch.randint(50, (4, 8, 12), generator=torch.Generator().manual_seed(i))
        optimizer.zero_grad()
        for part in tokens:
            (F.cross_entropy(compiled(part).flatten(0, 1), part.roll(-1).flatten()) / len(tokens)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    resumes(build, step, 12)


class Adapted(nn.Module):
    """A frozen layer with a low-rank correction that begins at zero, as adapters of large models do."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.randn(rank, base.in_features) / rank)
        self.lora_B = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.lora_A.T @ self.lora_B.T


@pytest.mark.compatible("adapters", "low-rank ones that begin at zero: resumed, bit for bit, and merged at the end")
def test_adapters_that_begin_at_zero() -> None:
    x = torch.randn(64, 20, generator=torch.Generator().manual_seed(0))
    y = torch.tanh(x @ torch.randn(20, 5, generator=torch.Generator().manual_seed(1)))

    def build() -> tuple[nn.Module, HATAM]:
        torch.manual_seed(0)
        model = nn.Sequential(Adapted(nn.Linear(20, 30)), nn.Tanh(), Adapted(nn.Linear(30, 5)))
        return model, HATAM(param_groups(model, weight_decay=0.0), lr=0.02, gamma=0.5, travel=0.0)

    def step(model: nn.Module, optimizer: HATAM, i: int) -> None:
        optimizer.zero_grad()
        F.mse_loss(model(x), y).backward()
        optimizer.step()

    resumes(build, step, 40)
    model, optimizer = build()
    start = F.mse_loss(model(x), y).item()
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)
    for i in range(40):
        step(model, optimizer, i)
        schedule.step()
        if i == 30:
            assert float(optimizer.state[model[0].lora_B]["reach"]) > 0
    optimizer.eval()
    found = model(x).detach()
    assert F.mse_loss(found, y).item() < 0.5 * start
    for layer in (model[0], model[2]):
        layer.base.weight.data += layer.lora_B.data @ layer.lora_A.data
        layer.lora_B.data.zero_()
    torch.testing.assert_close(model(x).detach(), found)


@pytest.mark.skipif(minilm.missing() is not None, reason="needs the extra 'text'")
@pytest.mark.compatible("fine-tuning", "MiniLM, 22.6 million pretrained parameters: resumed, bit for bit")
def test_fine_tuning_a_pretrained_model() -> None:
    task = all_tasks()["minilm"]
    data = task.data()

    def build() -> tuple[nn.Module, HATAM]:
        torch.manual_seed(0)
        model = task.model()
        optimizer = HATAM(param_groups(model, weight_decay=0.01), lr=3e-4, gamma=0.2, travel=0.0)
        follow(model, optimizer)
        return model, optimizer

    def step(model: nn.Module, optimizer: HATAM, i: int) -> None:
        some = slice(16 * i, 16 * (i + 1))
        optimizer.zero_grad()
        F.cross_entropy(model(data.train.x[some]), data.train.y[some]).backward()
        optimizer.step()

    resumes(build, step, 4)


@pytest.mark.compatible("accelerate", "two processes")
def test_accelerate_on_two_processes(tmp_path: Path) -> None:
    ended, said = jobs.run(2, EXAMPLES / "accelerate_train.py", folder=tmp_path, ACCELERATE_USE_CPU="true")
    assert ended == [0, 0], said
    accuracies = [float(line.partition("accuracy: ")[2]) for line in said.splitlines() if line.startswith("accuracy")]
    assert len(accuracies) == 2
    assert accuracies[0] == accuracies[1] > 0.85
