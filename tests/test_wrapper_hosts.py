"""A wrapped optimizer in its hosts: schedules, devices, mixed precision, torch.compile, sharding, integrations."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jobs
import pytest
import torch
from conftest import cosine, equal, feed, gradients, parameters, twins
from test_schedulers import SCHEDULES
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from hatam import Straightened, follow, update_bn

REACHING: dict[str, Any] = {"travel": 0.0, "horizon": 10.0, "hidden": True}


def wrapped(params: Any, lr: Any = 0.1, **options: Any) -> Straightened:
    return Straightened(SGD(params, lr, momentum=0.9), **{**REACHING, **options})


@pytest.mark.parametrize("make", SCHEDULES.values(), ids=SCHEDULES.keys())
def test_schedules(make: Callable[[Any], LRScheduler]) -> None:
    """All of torch's, on a quadratic, saved and loaded half way: it goes on bit for bit."""

    def setup() -> tuple[nn.Parameter, Straightened, LRScheduler]:
        (param,) = parameters([(5, 4)])
        optimizer = wrapped([param], 0.02)
        return param, optimizer, make(optimizer)

    def train(param: nn.Parameter, optimizer: Straightened, schedule: LRScheduler, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (param**2).sum()
            loss.backward()
            optimizer.step()
            schedule.step(*[1.0] * isinstance(schedule, ReduceLROnPlateau))
            losses.append(loss.item())
        return losses

    param, optimizer, schedule = setup()
    first = train(param, optimizer, schedule, 10)
    other, resumed, resumed_schedule = setup()
    other.data.copy_(param.data)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed_schedule.load_state_dict(schedule.state_dict())
    second = train(param, optimizer, schedule, 10)
    assert train(other, resumed, resumed_schedule, 10) == second
    assert torch.equal(param, other)
    assert second[-1] < first[0]


def test_a_group_may_have_several_devices_and_dtypes() -> None:
    """What a CPU can show of it: tensors on "meta" among others, and float64 and bfloat16 among float32."""
    params = parameters([(4, 3), (3, 4)])
    alone, rows = twins(params), gradients(params, 8)
    elsewhere = nn.Parameter(torch.empty(5, 5, device="meta"))
    others = [*parameters([(2, 3)], torch.float64), *parameters([(3, 3)], torch.bfloat16)]
    optimizer = wrapped([params[0], elsewhere, others[0], params[1], others[1]])
    more = gradients(others, 8)
    for row, own, lr in zip(rows, more, cosine(16, 0.1), strict=False):
        elsewhere.grad = torch.empty_like(elsewhere)
        feed(optimizer, [*params, *others], [[*row, *own]], [lr])
    feed(wrapped(alone), alone, rows, cosine(16, 0.1)[:8])
    assert equal(params, alone)
    assert all(optimizer.state[p]["reach"] > 0 for p in (*params, *others))
    assert optimizer.state[elsewhere]["reach"].is_meta
    assert optimizer.state[elsewhere]["offset"].is_meta


@pytest.mark.parametrize(
    ("base", "lr"), [(SGD, 0.1), (SGD, torch.tensor(0.1)), (AdamW, torch.tensor(0.1))], ids=["float", "tensor", "AdamW"]
)
def test_a_compiled_step(base: Any, lr: Any) -> None:
    """The numbers of the step as it is; with a tensor lr nothing is compiled again as lr changes."""
    params = parameters([(5, 4), (7,)])
    others, rows = twins(params), gradients(params, 8)
    optimizer, compiled = (Straightened(base(ps, copy.copy(lr)), **REACHING) for ps in (params, others))
    graphs = []

    def counter(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph

    step = torch.compile(compiled.step, backend=counter)
    counts = []
    for row, rate in zip(rows, cosine(16, 0.1), strict=False):
        feed(optimizer, params, [row], [rate])
        for p, g in zip(others, row, strict=True):
            p.grad = g.clone()
        group = compiled.param_groups[0]
        group["lr"] = group["lr"].fill_(rate) if isinstance(lr, torch.Tensor) else rate
        step()
        counts.append(len(graphs))
    assert optimizer.state[params[0]]["reach"] > 0
    assert all(torch.allclose(p, q, rtol=1e-4, atol=1e-5) for p, q in zip(params, others, strict=True))
    assert counts[0] > 0
    assert counts[-1] == counts[3] or not isinstance(lr, torch.Tensor)


@pytest.mark.parametrize("fused", [False, True], ids=["foreach", "fused"])
def test_what_a_gradscaler_skips_moves_nothing(fused: bool) -> None:
    """Neither parameters nor state nor peak, whoever could undo the scale; the others are steps without a scaler."""
    params = parameters([(6, 5), (7,)])
    others = twins(params)
    optimizer, plain = (Straightened(AdamW(ps, 0.01, fused=fused), **REACHING) for ps in (params, others))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for i, (row, lr) in enumerate(zip(gradients(params, 8), cosine(16, 0.01), strict=False)):
        bad = i in (0, 4)
        optimizer.param_groups[0]["lr"] = 1.0 if bad else lr
        before = copy.deepcopy((params, [optimizer.state[p] for p in params], optimizer.param_groups[0].get("lr_peak")))
        scale = scaler.scale(torch.ones(())).item()
        for p, q, g in zip(params, others, row, strict=True):
            p.grad, q.grad = g * scale, g.clone()
        if bad:
            params[1].grad[2] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        if bad:
            state = [optimizer.state[p] for p in params]
            assert repr(before) == repr((params, state, optimizer.param_groups[0].get("lr_peak")))
        else:
            plain.param_groups[0]["lr"] = lr
            plain.step()
    assert equal(params, others)
    assert optimizer.state[params[0]]["reach"] > 0


def test_autocast_and_batch_norm() -> None:
    """bfloat16 autocast; the statistics of BatchNorm belong to z after ``update_bn``; a followed model is at z."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = Straightened(SGD(model.parameters(), 0.05, momentum=0.9), travel=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 80)
    follow(model, optimizer)
    x = torch.randn(64, 8)
    y, losses = x[:, :2].sum(1, keepdim=True), []
    for _ in range(60):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.mse_loss(model(x).float(), y)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    w = [p.detach().clone() for p in model.parameters()]
    model.eval()
    assert not equal(w, model.parameters())
    update_bn([x], model, optimizer)
    mean, var = model[0](x).mean(0), model[0](x).var(0)
    assert torch.allclose(model[1].running_mean, mean, atol=1e-5)
    assert torch.allclose(model[1].running_var, var, atol=1e-5)
    model.train()
    assert all(torch.allclose(p, q, atol=1e-6) for p, q in zip(w, model.parameters(), strict=True))


def test_two_processes(tmp_path: Path) -> None:
    """FSDP2 and distributed checkpoints, around SGD and AdamW: the numbers of unsharded training."""
    ended, said = jobs.run(2, Path(__file__).parent / "wrapped_cases.py", tmp_path, "wrapped", folder=tmp_path)
    assert ended == [0, 0], said
    found = json.loads((tmp_path / "wrapped-2.json").read_text(encoding="utf-8"))
    assert len(found) == 8
    for name, error in found.items():
        assert error < (2e-5 if "float32" in name else 1e-12), name
