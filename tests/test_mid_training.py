"""Options that change in mid-training, what a checkpoint says of them, and two optimizers from one state."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Falling, equal, feed, gradients, parameters, twins

from hatam import HATAM


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({}, {"modulator": "relative"}),
        ({"modulator": "relative", "fade": 0.2}, {"modulator": "uniform"}),
        ({}, {"gamma": 0.0}),
        ({}, {"hidden": True}),
        ({"foreach": True}, {"lr": torch.tensor(0.01)}),
    ],
    ids=str,
)
def test_options_changed_in_mid_training_resume(given: dict[str, Any], changed: dict[str, Any]) -> None:
    """What would be refused of new groups is in a checkpoint, and means what it meant."""
    params = parameters()
    optimizer = Falling(params, 0.01, **given)
    feed(optimizer, params, gradients(params, 3))
    optimizer.param_groups[0].update(changed)
    feed(optimizer, params, gradients(params, 3))
    copied, loaded = copy.deepcopy((params, optimizer)), twins(params)
    other = Falling(loaded, 0.01)
    other.load_state_dict(optimizer.state_dict())
    for own, its in ((params, optimizer), copied, (loaded, other)):
        feed(its, own, gradients(params, 4))
    assert equal(params, copied[0])
    assert equal(params, loaded)


def test_an_offset_that_nothing_undoes_any_more_stays() -> None:
    """Before the next step, after it, and of a parameter that has no gradient since."""
    params = parameters([(5, 4), (3, 2)])
    optimizer = Falling(params, 0.01)
    feed(optimizer, params, gradients(params, 3))
    optimizer.param_groups[0]["modulator"] = "relative"
    before = [p.detach().clone() for p in params]
    with optimizer.straightened():
        assert equal(params, before)
    params[0].grad = None
    params[1].grad = gradients(params, 1)[0][1]
    optimizer.step()
    with optimizer.straightened():
        assert torch.equal(params[0], before[0])


@pytest.mark.parametrize("changed", [{"hidden": False}, {"modulator": "uniform"}], ids=str)
def test_an_offset_is_gone_where_nothing_displaces_any_more(changed: dict[str, Any]) -> None:
    """Or stays where it is, of another modulator: then z is w as it stands. Nothing stale is ever subtracted."""
    params = parameters([(5, 4), (3, 2)])
    optimizer = Falling(params, 0.01, modulator="relative", gamma=0.5, horizon=100.0)
    feed(optimizer, params, gradients(params, 5))
    optimizer.param_groups[0].update(changed)
    for _ in range(2):
        feed(optimizer, params, gradients(params, 3))
        w = twins(params)
        with optimizer.straightened():
            assert equal(params, w) == ("hidden" in changed)
    optimizer.param_groups[0]["hidden"] = True
    feed(optimizer, params, gradients(params, 3))
    assert all(p.isfinite().all() for p in params)


def test_a_layer_that_is_frozen_in_evaluation_stays_at_z() -> None:
    params = parameters([(5, 4), (3, 2)])
    optimizer = Falling(params, 0.01, gamma=0.5, horizon=100.0)
    feed(optimizer, params, gradients(params, 5))
    optimizer.eval()
    z = params[0].detach().clone()
    params[0].requires_grad_(False)
    params[0].grad = None
    optimizer.train()
    assert torch.equal(params[0], z)
    feed(optimizer, params[1:], [row[1:] for row in gradients(params, 3)])
    with optimizer.straightened():
        assert torch.equal(params[0], z)


def test_groups_may_be_taken_out_and_parameters_replaced() -> None:
    """Who has a reach goes with the parameter, not with its place."""
    params = parameters([(5, 4), (7,), (3, 2)])
    optimizer = Falling([{"params": params[:1]}, {"params": params[1:]}], 0.01)
    feed(optimizer, params, gradients(params, 3))
    del optimizer.param_groups[0]
    optimizer.param_groups[0]["params"].reverse()
    feed(optimizer, params, gradients(params, 3))
    assert ["reach" in optimizer.state[p] for p in params[1:]] == [False, True]


def test_loading_shares_nothing() -> None:
    """Two optimizers from one state do not count each other's steps."""
    params = parameters()
    optimizer = torch.optim.AdamW(params, 0.01)
    feed(optimizer, params, gradients(params, 3))
    branch = Falling(twins(params), 0.01)
    branch.load_state_dict(optimizer.state_dict())
    feed(optimizer, params, gradients(params, 3))
    assert all(state["step"] == 3 for state in branch.state.values())


def test_lr_may_become_a_tensor_of_another_shape() -> None:
    params = parameters()
    optimizer = Falling(params, torch.tensor(0.01))
    feed(optimizer, params, gradients(params, 1))
    optimizer.param_groups[0]["lr"] = torch.tensor([0.02])
    feed(optimizer, params, gradients(params, 1))
    assert optimizer.param_groups[0]["lr_peak"] == torch.tensor(0.02)


@pytest.mark.parametrize("path", [{"foreach": True}, {"fused": True}], ids=str)
@pytest.mark.parametrize(
    "changes",
    [
        [{"lr": torch.tensor(0.01, dtype=torch.float64)}],
        [{"modulator": "uniform"}, {"modulator": "relative"}],
        [{"gamma": 0.0}, {"gamma": 0.3}],
        [{"hidden": True}],
    ],
    ids=str,
)
def test_paths_agree_on_what_is_changed(changes: list[dict[str, Any]], path: dict[str, Any]) -> None:
    """With the gradients growing, as a mean that is not kept up would show then."""
    params = parameters(dtype=torch.float64)
    others = twins(params)
    optimizers = Falling(params, 0.01, foreach=False, fused=False), Falling(others, 0.01, **path)
    for i, change in enumerate([{}, *changes]):
        for optimizer in optimizers:
            optimizer.param_groups[0].update(change)
        for grads in gradients(params, 4):
            for optimizer, own in zip(optimizers, (params, others), strict=True):
                feed(optimizer, own, [[g * 10**i for g in grads]])
    for ours, theirs in zip(params, others, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_after_the_uniform_modulator_no_mean_is_known() -> None:
    """So z is w as it stands, however long a relative one was before."""
    params = parameters()
    optimizer = Falling(params, 0.01)
    for modulator in ("relative", "uniform", "relative"):
        optimizer.param_groups[0]["modulator"] = modulator
        before = [p.detach().clone() for p in params]
        if optimizer.state and modulator == "relative":
            with optimizer.straightened():
                assert equal(params, before)
        feed(optimizer, params, gradients(params, 3))


def test_an_lr_of_a_whole_number_has_a_peak_that_is_none() -> None:
    w = torch.nn.Parameter(torch.ones(3))
    optimizer = HATAM([w], torch.tensor(0), betas=(0.9, 0.95))
    optimizer.param_groups[0]["lr"] = torch.tensor(0.01)
    feed(optimizer, [w], gradients([w], 2))
    assert float(optimizer.param_groups[0]["lr_peak"]) == pytest.approx(0.01)
    optimizer.param_groups[0]["lr"] = torch.tensor([0.01, 0.02])
    with pytest.raises(ValueError, match="lr as a tensor must have one element"):
        optimizer.step()
    with pytest.raises(TypeError, match="a parameter group must be a dict"):
        optimizer.add_param_group([w])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fade": 0.0}, "fade=0.0 is out of range"),
        ({"betas": (1.0, 0.9)}, r"betas\[0\]=1.0 is out of range"),
        ({"betas": 0.9}, "betas must be a pair"),
        ({"lr": -0.1}, "lr=-0.1 is out of range"),
        ({"modulator": "uniforn"}, "modulator='uniforn' is unknown"),
        ({"gamma": None}, "gamma must be a number"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused_at_the_step(changed: dict[str, Any], message: str) -> None:
    """Before anything has moved."""
    params = parameters()
    optimizer = Falling(params, 0.01)
    feed(optimizer, params, gradients(params, 2))
    before = twins(params)
    optimizer.param_groups[0].update(changed)
    with pytest.raises((ValueError, TypeError), match=message):
        optimizer.step()
    assert equal(params, before)


@pytest.mark.parametrize("changed", [{"lr": 1}, {"betas": [0.9, 0.95]}, {"lr": np.float64(0.01)}], ids=str)
def test_options_of_other_kinds_go_on(changed: dict[str, Any]) -> None:
    params = parameters()
    optimizer = Falling(params, 0.01)
    optimizer.param_groups[0].update(changed)
    feed(optimizer, params, gradients(params, 2))
    assert all(p.isfinite().all() for p in params)


# Who belongs to a group ----------------------------------------------------------------------------------------------


def test_a_parameter_that_comes_back_goes_on_from_where_it_is() -> None:
    """Nothing stale is subtracted: its steps are those of one that never had an offset."""
    params = parameters([(5, 4)])
    optimizer = Falling(params, 0.01)
    feed(optimizer, params, gradients(params, 3))
    optimizer.eval()
    z = params[0].detach().clone()
    del optimizer.param_groups[0]
    optimizer.add_param_group({"params": params})
    with optimizer.straightened():
        assert torch.equal(params[0], z)
    fresh = [torch.nn.Parameter(z)]
    other = Falling(fresh, 0.01)
    other.state[fresh[0]] = {key: optimizer.state[params[0]][key].clone() for key in ("step", "exp_avg", "exp_avg_sq")}
    rows = gradients(params, 3, 5)
    feed(optimizer, params, rows)
    feed(other, fresh, rows)
    assert equal(params, fresh)


def test_a_parameter_that_has_left_is_let_go() -> None:
    params = parameters([(5, 4), (3, 2)])
    optimizer = Falling([{"params": [p]} for p in params], 0.01)
    feed(optimizer, params, gradients(params, 3))
    gone = weakref.ref(optimizer.state[params[1]]["exp_avg"])
    del optimizer.param_groups[1], optimizer.state[params[1]]
    feed(optimizer, params[:1], [row[:1] for row in gradients(params, 1)])
    gc.collect()
    assert gone() is None


def test_members_without_shape_or_name() -> None:
    """A lazy module that was not used yet, and a parameter that was appended to a group with names."""
    layer, lazy = torch.nn.Linear(4, 3), torch.nn.LazyLinear(2)
    optimizer = Falling(
        [*layer.named_parameters(), *((f"lazy.{name}", p) for name, p in lazy.named_parameters())], 0.01
    )
    added = torch.nn.Parameter(torch.ones(3, 3))
    optimizer.param_groups[0]["params"].append(added)
    for _ in range(3):
        for p in (*layer.parameters(), added):
            p.grad = torch.ones_like(p)
        optimizer.step()
    assert [bool(optimizer.state[p].get("reach", 0) > 0) for p in (layer.weight, layer.bias, added)] == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize("changed", [{"weight_decay": None}, {"modulator": [1]}, {"horizon": "2"}], ids=str)
def test_an_option_of_another_type_is_named(changed: dict[str, Any]) -> None:
    params = parameters([(3, 2)])
    optimizer = Falling(params, 0.01)
    optimizer.param_groups[0].update(changed)
    with pytest.raises((TypeError, ValueError), match=next(iter(changed))):
        feed(optimizer, params, gradients(params, 1))


def test_the_peak_of_an_lr_that_was_a_tensor_is_a_float_again() -> None:
    params = parameters()
    optimizer, other = HATAM(params, torch.tensor(0.02)), HATAM(twins(params), 0.02)
    for one in (optimizer, other):
        feed(one, one.param_groups[0]["params"], gradients(params, 1))
    assert isinstance(optimizer.param_groups[0]["lr_peak"], torch.Tensor)
    for one in (optimizer, other):
        one.param_groups[0]["lr"] = 0.01
        feed(one, one.param_groups[0]["params"], gradients(params, 2))
    assert type(optimizer.param_groups[0]["lr_peak"]) is float
    assert optimizer.param_groups[0]["lr_peak"] == pytest.approx(0.02)
    assert all(torch.allclose(p, q) for p, q in zip(params, other.param_groups[0]["params"], strict=True))
