"""The late reach around other optimizers: HATAM's around AdamW, and what a wrapper must not lose."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import cosine, equal, feed, gradients, parameters, relative_error, through_a_file, twins
from torch import nn
from torch.optim import SGD, AdamW, Optimizer, RMSprop

from hatam import HATAM, Straightened, follow

Make = Callable[[Any], Optimizer]
BASES: dict[str, Make] = {
    "SGD": lambda params: SGD(params, 0.1, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda params: AdamW(params, 0.01),
    "RMSprop": lambda params: RMSprop(params, 0.01),
}
every_base = pytest.mark.parametrize("make", BASES.values(), ids=BASES.keys())
REACHING: dict[str, Any] = {"travel": 0.0, "horizon": 10.0, "hidden": True}


@pytest.mark.parametrize("horizon", [2.0, 50.0])
def test_around_adamw_it_is_hatam(horizon: float) -> None:
    """On prescribed gradients, without weight decay, once the bias corrections are 1."""
    params = parameters([(5, 4), (7,), (3, 2)], torch.float64)
    others, rows = twins(params), gradients(params, 460)
    rates = [0.03] * 400 + cosine(61, 0.03)[:60]
    given: dict[str, Any] = {"travel": 0.5, "horizon": horizon}
    hatam = HATAM(params, 0.01, weight_decay=0.0, **given)
    wrapped = Straightened(AdamW(others, 0.01, betas=(0.9, 0.95), weight_decay=0.0), **given)
    for optimizer, own in ((hatam, params), (wrapped, others)):
        feed(optimizer, own, rows, rates)
    assert wrapped.state[others[0]]["reach"] > 0
    assert relative_error(wrapped.state[others[0]]["reach"], hatam.state[params[0]]["reach"]) < 1e-9
    assert all(relative_error(p, q) < 1e-10 for p, q in zip(others, params, strict=True))
    with hatam.straightened(), wrapped.straightened():
        assert all(relative_error(p, q) < 1e-10 for p, q in zip(others, params, strict=True))


@every_base
@pytest.mark.parametrize("options", [{"gamma": 0.0}, {"hidden": False}, {"travel": 1e9}], ids=str)
def test_without_a_reach_it_is_the_base(make: Make, options: dict[str, Any]) -> None:
    params = parameters()
    others, rows = twins(params), gradients(params, 8)
    feed(make(params), params, rows, cosine(8, 0.1))
    feed(Straightened(make(others), **options), others, rows, cosine(8, 0.1))
    assert equal(params, others)


@every_base
@pytest.mark.parametrize("evaluating", [False, True], ids=["train", "eval"])
def test_it_goes_on_from_its_state(make: Make, evaluating: bool) -> None:
    """Bit for bit, through a file, in either mode; and a copy goes on alike."""
    params = parameters()
    optimizer, rows = Straightened(make(params), **REACHING), gradients(params, 12)
    feed(optimizer, params, rows[:6], cosine(12, 0.1)[:6])
    if evaluating:
        optimizer.eval()
    loaded, (copied, other) = twins(params), copy.deepcopy((params, optimizer))
    resumed = Straightened(make(loaded), **REACHING)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    assert other.param_groups is other.base.param_groups
    for one, own in ((optimizer, params), (resumed, loaded), (other, copied)):
        one.train()
        feed(one, own, rows[6:], cosine(12, 0.1)[6:])
    assert equal(params, loaded)
    assert equal(params, copied)


@every_base
def test_there_and_back(make: Make) -> None:
    params = parameters()
    optimizer = Straightened(make(params), **REACHING)
    feed(optimizer, params, gradients(params, 6), cosine(12, 0.1)[:6])
    w = [p.detach().clone() for p in params]
    with optimizer.straightened():
        z = [p.detach().clone() for p in params]
        with pytest.raises(RuntimeError, match="end the block first"):
            optimizer.step()
    assert equal(params, w)
    assert not equal(z, w)
    optimizer.eval()
    assert equal(params, z)
    optimizer.train()
    assert all(torch.allclose(p, q) for p, q in zip(params, w, strict=True))


def test_schedules_closures_groups_and_models_that_are_followed() -> None:
    """One gradient a step, at w; a scheduler sees the base's groups, and one that is added is the base's."""
    torch.manual_seed(0)
    model, late = nn.Linear(4, 3), nn.Linear(3, 1)
    optimizer = Straightened(SGD(model.parameters(), 0.1, momentum=0.9), **REACHING)
    optimizer.add_param_group({"params": list(late.parameters()), "hidden": False})
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    follow(model, optimizer)
    losses = []

    def closure() -> float:
        optimizer.zero_grad()
        loss = late(model(torch.ones(8, 4))).square().mean()
        loss.backward()
        losses.append(float(loss.detach()))
        return losses[-1]

    for i in range(20):
        assert optimizer.step(closure) == losses[i]
        schedule.step()
        if i == 10:
            assert optimizer.state[model.weight]["reach"] > 0
    assert len(losses) == 20
    assert losses[-1] < 0.01 * losses[0]
    assert late.weight not in optimizer.state
    assert [group["lr"] for group in optimizer.base.param_groups] == [optimizer.param_groups[0]["lr"]] * 2


@pytest.mark.parametrize(
    ("base", "options", "message"),
    [
        (torch.nn.Linear(1, 1), {}, "must be a torch optimizer"),
        (SGD([torch.zeros(1)], 0.1), {"gamma": -1.0}, "gamma=-1.0"),
        (SGD([torch.zeros(1)], 0.1), {"fade": 0.0}, "fade=0.0"),
    ],
)
def test_what_cannot_be_is_refused(base: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        Straightened(base, **options)


def test_nothing_may_move_inside_a_straightened_block() -> None:
    (param,) = parameters([(3, 2)])
    optimizer = Straightened(SGD([param], 0.1))
    param.grad = torch.ones_like(param)
    optimizer.step()
    before = param.detach().clone()
    with optimizer.straightened():
        for move in (optimizer.step, optimizer.train, optimizer.eval):
            with pytest.raises(RuntimeError, match=r"inside straightened\(\)"):
                move()
        with pytest.raises(RuntimeError, match=r"load_state_dict\(\) inside"):
            optimizer.load_state_dict(optimizer.state_dict())
    assert torch.equal(param, before)
    assert optimizer.state[param]["step"] == 1
