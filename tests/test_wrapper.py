"""The late reach around other optimizers: against two oracles, and what a wrapper must not lose."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import pytorch_optimizer
import torch
from conftest import cosine, equal, feed, gradients, parameters, relative_error, through_a_file, twins
from torch import nn
from torch.optim import LBFGS, SGD, AdamW, Muon, Optimizer, RMSprop

from hatam import HATAM, Straightened, follow
from hatam.testing import AroundReference

Make = Callable[[Any], Optimizer]
BASES: dict[str, Make] = {
    "SGD": lambda params: SGD(params, 0.1, momentum=0.9, weight_decay=0.01),
    "AdamW": lambda params: AdamW(params, 0.01),
    "AdamW fused": lambda params: AdamW(params, 0.01, fused=True),
    "RMSprop": lambda params: RMSprop(params, 0.01),
    "Lion": lambda params: pytorch_optimizer.Lion(params, 0.01),
    "LAMB": lambda params: pytorch_optimizer.Lamb(params, 0.01),
    "Muon": lambda params: Muon(params, 0.01),
}
MATRICES = ((5, 4), (3, 6))  # all that Muon takes
SHAPES: dict[Make, Any] = {BASES["Muon"]: MATRICES}
every_base = pytest.mark.parametrize("make", BASES.values(), ids=BASES.keys())
REACHING: dict[str, Any] = {"travel": 0.0, "horizon": 10.0, "hidden": True}


def parameters_for(make: Make, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    return parameters(SHAPES.get(make, ((5, 4), (7,), ())), dtype)


@pytest.mark.parametrize("options", [{"travel": 0.0}, {"travel": 0.5, "horizon": 20.0, "gamma": 0.5}], ids=str)
@every_base
def test_z_is_the_base_alone_and_w_is_ahead(make: Make, options: dict[str, Any]) -> None:
    """On prescribed gradients, with a warm-up, a restart at a higher peak, and lr = 0 in between."""
    params = parameters_for(make, torch.float64)
    alone, rows = twins(params), gradients(params, 60)
    references = [AroundReference(p, **options) for p in params]
    for reference in references:
        reference.horizon = options.get("horizon", 2.0)
    optimizer, base = Straightened(make(params), hidden=True, **options), make(alone)
    reached = 0.0
    for row, lr in zip(rows, [*cosine(30, 0.1, 5), *cosine(30, 0.3, 5)], strict=True):
        feed(optimizer, params, [row], [lr])
        feed(base, alone, [row], [lr])
        for p, z, reference in zip(params, alone, references, strict=True):
            reference.follow(z, lr)
            assert (p - reference.w).abs().max() <= 1e-9 * max(1.0, float(reference.w.abs().max()))
            reached = max(reached, reference.reach(lr))
    with optimizer.straightened():
        assert all(torch.allclose(p, z, rtol=1e-12, atol=1e-12) for p, z in zip(params, alone, strict=True))
    assert reached > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_moves_no_z_of_narrow_parameters(dtype: torch.dtype) -> None:
    """z is the base's bit for bit, however often w is rounded; what is measured is measured in float32."""
    params = parameters(dtype=dtype)
    alone, rows = twins(params), gradients(params, 60)
    optimizer = Straightened(SGD(params, 0.1, momentum=0.9), travel=0.0, hidden=True)
    feed(optimizer, params, rows, cosine(120, 0.1)[:60])
    feed(SGD(alone, 0.1, momentum=0.9), alone, rows, cosine(120, 0.1)[:60])
    assert not equal(params, alone)
    w = [p.detach().clone() for p in params]
    optimizer.eval()
    assert equal(params, alone)
    optimizer.train()
    assert equal(params, w)
    assert {optimizer.state[p]["rms_ratio"].dtype for p in params} == {torch.float32}


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
    params = parameters_for(make)
    others, rows = twins(params), gradients(params, 8)
    feed(make(params), params, rows, cosine(8, 0.1))
    optimizer = Straightened(make(others), **options)
    feed(optimizer, others, rows, cosine(8, 0.1))
    assert equal(params, others)
    assert any("offset" in state for state in optimizer.state.values()) is ("travel" in options)


@every_base
@pytest.mark.parametrize("evaluating", [False, True], ids=["train", "eval"])
def test_it_goes_on_from_its_state(make: Make, evaluating: bool) -> None:
    """Bit for bit, through a file, in either mode."""
    params = parameters_for(make)
    optimizer, rows = Straightened(make(params), **REACHING), gradients(params, 12)
    feed(optimizer, params, rows[:6], cosine(12, 0.1)[:6])
    if evaluating:
        optimizer.eval()
    loaded = twins(params)
    resumed = Straightened(make(loaded), **REACHING)
    resumed.load_state_dict(through_a_file(optimizer.state_dict()))
    for one, own in ((optimizer, params), (resumed, loaded)):
        one.train()
        feed(one, own, rows[6:], cosine(12, 0.1)[6:])
    assert equal(params, loaded)


def test_a_copy_goes_on() -> None:
    """Of a base that can be copied: those of torch, and not all of pytorch_optimizer."""
    params = parameters()
    optimizer, rows = Straightened(SGD(params, 0.1, momentum=0.9), **REACHING), gradients(params, 12)
    feed(optimizer, params, rows[:6], cosine(12, 0.1)[:6])
    copied, other = copy.deepcopy((params, optimizer))
    assert other.param_groups is other.base.param_groups
    assert other.state is other.base.state
    for one, own in ((optimizer, params), (other, copied)):
        feed(one, own, rows[6:], cosine(12, 0.1)[6:])
    assert equal(params, copied)


@every_base
def test_there_and_back(make: Make) -> None:
    params = parameters_for(make)
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
    assert "offset" not in optimizer.state[late.weight]
    assert [group["lr"] for group in optimizer.base.param_groups] == [optimizer.param_groups[0]["lr"]] * 2


@pytest.mark.parametrize(
    ("base", "options", "message"),
    [
        (torch.nn.Linear(1, 1), {}, "must be a torch optimizer"),
        (SGD([torch.zeros(1)], 0.1), {"gamma": -1.0}, "gamma=-1.0"),
        (SGD([torch.zeros(1)], 0.1), {"fade": 0.0}, "fade=0.0"),
        (SGD([{"params": [torch.zeros(1)], "horizon": -1.0}], 0.1), {}, "horizon=-1.0"),
        (HATAM([torch.zeros(1)]), {}, "HATAM has one"),
        (LBFGS([torch.zeros(1)]), {}, "LBFGS.step needs a closure"),
        (AdamW([torch.zeros(1)], differentiable=True), {}, "differentiable=True"),
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
    assert optimizer.state[param]["reach_steps"] == 1


def test_options_of_groups_and_of_bases() -> None:
    """A group has its own; a name that means something else to the base is the base's."""
    params = parameters([(3, 3), (3, 3), (3, 3)])
    groups = [{"params": params[:1]}, {"params": params[1:2], "gamma": 0.0}, {"params": params[2:], "travel": 1e9}]
    optimizer = Straightened(SGD(groups, 0.1), travel=0.0)
    feed(optimizer, params, gradients(params, 8), cosine(16, 0.1)[:8])
    assert optimizer.state[params[0]]["reach"] > 0
    assert "offset" not in optimizer.state[params[1]]
    assert optimizer.state[params[2]]["reach"] < 1e-12

    (param,) = parameters([(3, 3)])
    base = pytorch_optimizer.AdaBound([param], 0.01)
    assert base.defaults["gamma"] != 0.2
    optimizer = Straightened(base, travel=0.0, horizon=1e9)
    feed(optimizer, [param], gradients([param], 8), cosine(16, 0.01)[:8])
    lr, state = optimizer.param_groups[0]["lr"], optimizer.state[param]
    offset = float(state["offset"].norm() / (param.detach() + state["offset"]).norm())
    assert 0 < offset < 0.2 * 1.1 * (1 - lr / 0.01) ** 2  # γ = 0.2 and not AdaBound's 0.001, but for ρ, one step old
    assert offset > 0.001


def test_parameters_come_go_and_change() -> None:
    """A gradient that is missing, a tensor that is no longer hidden, state that is cleared, a group that is added."""
    params = parameters([(4, 3), (3, 4)])
    optimizer = Straightened(SGD(params, 0.1, momentum=0.9), **REACHING)
    rows, lrs = gradients(params, 12), cosine(24, 0.1)
    feed(optimizer, params, rows[:6], lrs[:6])
    w = [p.detach().clone() for p in params]
    params[0].grad, params[1].grad = None, rows[6][1]
    optimizer.step()
    assert torch.equal(params[0], w[0])
    assert not torch.equal(params[1], w[1])

    with optimizer.straightened():
        z = [p.detach().clone() for p in params]
    optimizer.param_groups[0]["hidden"] = False
    params[0].grad, params[1].grad = torch.zeros(4, 3), torch.zeros(3, 4)
    for state in optimizer.state.values():
        state["momentum_buffer"].zero_()
    optimizer.step()
    assert equal(params, z)
    assert all("offset" not in state for state in optimizer.state.values())

    optimizer.param_groups[0]["hidden"] = True
    (added,) = parameters([(2, 2)])
    optimizer.add_param_group({"params": [added]})
    feed(optimizer, [*params, added], [[*row, torch.ones(2, 2)] for row in rows[6:9]], [0.1, 0.08, 0.06])
    assert all(optimizer.state[p]["reach"] > 0 for p in (*params, added))
    optimizer.state.clear()
    feed(optimizer, [*params, added], [[*row, torch.ones(2, 2)] for row in rows[9:]], [0.05, 0.04, 0.03])
    assert all(optimizer.state[p]["reach_steps"] == 3 for p in (*params, added))


def test_a_base_that_fails_leaves_z() -> None:
    class Failing(SGD):
        fails = False

        def step(self, closure: Any = None) -> None:
            if self.fails:
                raise ArithmeticError
            super().step()

    (param,) = parameters([(4, 3)])
    optimizer = Straightened(Failing([param], 0.1), **REACHING)
    feed(optimizer, [param], gradients([param], 6), cosine(12, 0.1)[:6])
    with optimizer.straightened():
        z = param.detach().clone()
    optimizer.base.fails = True  # type: ignore[attr-defined]
    with pytest.raises(ArithmeticError):
        optimizer.step()
    assert torch.allclose(param, z)
    with optimizer.straightened():
        assert torch.allclose(param, z)


def test_checkpoints_of_the_base_and_of_another_model() -> None:
    """The base's is loaded, and the weights are z; an offset of another shape is refused before anything changes."""
    params = parameters([(4, 3)])
    others, rows = twins(params), gradients(params, 6)
    base = SGD(params, 0.1, momentum=0.9)
    feed(base, params, rows, cosine(12, 0.1)[:6])
    optimizer = Straightened(SGD(others, 0.1, momentum=0.9), **REACHING)
    optimizer.load_state_dict(copy.deepcopy(base.state_dict()))
    with torch.no_grad():
        others[0].copy_(params[0])
    for one, own in ((base, params), (optimizer, others)):
        feed(one, own, rows[:1], [0.1])
    assert equal(params, others)

    wrong = Straightened(SGD(parameters([(3, 4)]), 0.1, momentum=0.9), **REACHING)
    before = repr(wrong.state_dict())
    with pytest.raises(ValueError, match=r"shape \(4, 3\)"):
        wrong.load_state_dict(optimizer.state_dict())
    assert repr(wrong.state_dict()) == before
