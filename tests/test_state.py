"""State: what poison does to it, what a checkpoint keeps of it, and what straightened() gives back."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from conftest import (
    Falling,
    bits,
    cosine,
    equal,
    every_path,
    every_variant,
    feed,
    gradients,
    parameters,
    relative_error,
    through_a_file,
    twins,
)
from torch import Tensor
from torch.optim import AdamW

from hatam import HATAM
from hatam.storage import REACH_STATE

DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)


# Poison -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [0, 1, 20], ids=lambda i: f"from-step-{i + 1}")
@pytest.mark.parametrize("poison", [math.nan, math.inf], ids=str)
@every_path
@every_variant
def test_poison_in_one_coordinate_harms_that_coordinate_alone(
    options: dict[str, Any], foreach: bool, poison: float, first: int
) -> None:
    """AdamW loses the one coordinate for good and no other. So must HATAM, although S has a mean over the tensor.

    The twin has gradient 0 there. What is measured of the tensor is frozen at its last good values, before the first
    step at none: w then lacks the offset that the twin has. z is the same to the last bit but for that coordinate, as
    the gradients are prescribed. Other tensors hear nothing at all.
    """
    params = parameters([(20, 10), (30,)])
    others = twins(params)
    poisoned = gradients(params, 50)
    for row in poisoned[first:]:
        row[0][3, 4] = 0.0
    clean = copy.deepcopy(poisoned)
    for row in poisoned[first : first + 3]:
        row[0][3, 4] = poison
    optimizer = Falling(params, 0.01, **options, foreach=foreach)
    feed(optimizer, params, poisoned)
    other = Falling(others, 0.01, **options, foreach=foreach)
    feed(other, others, clean)
    assert params[0].isfinite().sum() == params[0].numel() - 1
    assert torch.equal(params[1], others[1])
    assert first < 20 or all(value.isfinite() for value in optimizer.state[params[0]].values() if value.dim() == 0)
    with optimizer.straightened(), other.straightened():
        difference = (params[0] - others[0]).detach()
        difference[3, 4] = 0.0
        assert difference.abs().max() <= 2e-6 * params[0].nan_to_num().abs().max()


@every_path
@every_variant
def test_poison_in_an_adamw_checkpoint(options: dict[str, Any], foreach: bool) -> None:
    """There is no last good mean then, and S = sqrt(v̂) / ε would blow the tensor up."""
    params = parameters([(20, 10)])
    adamw = AdamW(params, 0.01)
    grads = gradients(params, 20)
    grads[4][0][3, 4] = math.nan
    feed(adamw, params, grads[:10])
    optimizer = HATAM(params, 0.01, **options, foreach=foreach)
    optimizer.load_state_dict(adamw.state_dict())
    feed(optimizer, params, grads[10:], cosine(10, 0.01))
    assert params[0].isfinite().sum() == params[0].numel() - 1
    assert params[0].nan_to_num().abs().max() < 10


@every_path
@every_variant
@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
def test_gradients_are_never_written_to(options: dict[str, Any], foreach: bool, maximize: bool) -> None:
    """Nor replaced."""
    params = parameters()
    optimizer = Falling(params, 0.01, **options, foreach=foreach, maximize=maximize)
    for row in gradients(params, 3):
        for param, grad in zip(params, row, strict=True):
            param.grad = grad
        before = [bits(g) for g in row]
        optimizer.step()
        assert [bits(g) for g in row] == before
        assert all(p.grad is g for p, g in zip(params, row, strict=True))


# Checkpoints --------------------------------------------------------------------------------------------------------


@DTYPES
@every_path
@every_variant
def test_resuming_changes_nothing(options: dict[str, Any], foreach: bool, dtype: torch.dtype) -> None:
    """20 steps are 10 steps, a file, and 10 more in a new process: bit for bit, state and all."""
    params = parameters(dtype=dtype)
    grads, lrs = gradients(params, 20), cosine(20, 0.01, 4)
    optimizer = Falling(params, 0.01, **options, foreach=foreach)
    feed(optimizer, params, grads[:10], lrs[:10])
    saved = through_a_file({"optimizer": optimizer.state_dict(), "params": [p.detach() for p in params]})
    feed(optimizer, params, grads[10:], lrs[10:])

    resumed = [torch.nn.Parameter(p) for p in saved["params"]]
    other = Falling(resumed, 0.5)  # every option comes from the checkpoint
    other.load_state_dict(saved["optimizer"])
    feed(other, resumed, grads[10:], lrs[10:])
    assert [bits(p) for p in params] == [bits(p) for p in resumed]
    for param, twin in zip(params, resumed, strict=True):
        state, other_state = optimizer.state[param], other.state[twin]
        assert state.keys() == other_state.keys()
        for key, value in state.items():
            assert other_state[key].dtype == value.dtype, key
            assert bits(other_state[key]) == bits(value), key
    assert optimizer.param_groups[0]["lr_peak"] == other.param_groups[0]["lr_peak"] == pytest.approx(0.02)


@DTYPES
def test_scalars_keep_their_precision(dtype: torch.dtype) -> None:
    """torch casts loaded state to the parameter's dtype; a reach in bfloat16 would leave w beside z."""
    params = parameters(dtype=dtype)
    optimizer = Falling(params, 0.01, modulator="relative", hidden=True)
    feed(optimizer, params, gradients(params, 3))
    for _ in range(2):
        for state in optimizer.state.values():
            for key in REACH_STATE:
                assert state[key].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
            assert state["step"].dtype == torch.float32
            assert state["exp_avg"].dtype == dtype
        optimizer.load_state_dict(through_a_file(optimizer.state_dict()))


@every_variant
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01)], ids=["float-lr", "tensor-lr"])
def test_copies_go_on_alike(options: dict[str, Any], copied: Any, lr: float | Tensor) -> None:
    """A copy shares nothing with the original, which goes first."""
    params = parameters()
    grads = gradients(params, 10)
    optimizer = Falling(params, copy.deepcopy(lr), **options)
    feed(optimizer, params, grads[:5])
    others, other = copied((params, optimizer))
    feed(optimizer, params, grads[5:])
    feed(other, others, grads[5:])
    assert equal(params, others)
    with other.straightened(), optimizer.straightened():
        assert equal(params, others)


@every_path
@every_variant
def test_adamw_checkpoint_continues_in_hatam(options: dict[str, Any], foreach: bool) -> None:
    """What AdamW did not keep is made once lr falls: with prescribed gradients z goes on as AdamW's w."""
    params = parameters(dtype=torch.float64)
    others = twins(params)
    grads, lrs = gradients(params, 20), cosine(20, 0.01)
    adamw = AdamW(others, 0.01, (0.9, 0.95))
    feed(adamw, others, grads[:10], lrs[:10])
    saved = through_a_file(adamw.state_dict())
    params = twins(others)
    optimizer = HATAM(params, 0.5, **options, foreach=foreach)
    optimizer.load_state_dict(saved)
    assert all(state.keys() == {"step", "exp_avg", "exp_avg_sq"} for state in optimizer.state.values())
    feed(optimizer, params, grads[10:15], lrs[10:15])
    feed(adamw, others, grads[10:15], lrs[10:15])
    assert not any(torch.equal(p, q) for p, q in zip(params, others, strict=True))
    with optimizer.straightened():
        assert all(relative_error(p, q) <= 1e-13 for p, q in zip(params, others, strict=True))


@every_variant
def test_hatam_checkpoint_continues_in_adamw(options: dict[str, Any]) -> None:
    """The moments are AdamW's, and the options that AdamW has no use for do not disturb it."""
    params = parameters()
    grads = gradients(params, 20)
    optimizer = Falling(params, 0.01, **options)
    feed(optimizer, params, grads[:10])
    adamw = AdamW(params, 0.01)
    adamw.load_state_dict(through_a_file(optimizer.state_dict()))
    before = twins(params)
    feed(adamw, params, grads[10:])
    for param, old in zip(params, before, strict=True):
        assert adamw.state[param]["step"] == 20
        assert param.isfinite().all()
        assert 0 < (param - old).abs().max() < 10 * 0.01 * 10


def test_load_state_dict_by_keyword_and_of_nothing() -> None:
    """As distributed checkpoints and accelerate call it."""
    params = parameters()
    optimizer = Falling(params, 0.01)
    optimizer.load_state_dict(state_dict=optimizer.state_dict())
    feed(optimizer, params, gradients(params, 1))
    assert all(p.isfinite().all() for p in params)


@every_path
@every_variant
def test_zero_gradients_move_nothing(options: dict[str, Any], foreach: bool) -> None:
    """Distributed checkpoints prime the state with zero gradients at lr 0: a mean of zeros must not give NaN."""
    params = parameters()
    start = twins(params)
    zeros = [[torch.zeros_like(p) for p in params]]
    optimizer = Falling(params, 0.01, weight_decay=0.0, **options, foreach=foreach)
    feed(optimizer, params, zeros * 2, [0.0, 0.01])
    assert equal(params, start)
    feed(optimizer, params, gradients(params, 5), [0.01] * 5)
    assert all((p - q).abs().max() < 1 for p, q in zip(params, start, strict=True))


# straightened() -----------------------------------------------------------------------------------------------------


@every_path
@every_variant
def test_straightened_gives_z_and_gives_back_w(options: dict[str, Any], foreach: bool) -> None:
    """With prescribed gradients z is AdamW's w. Afterwards every bit is as it was, also after an exception."""
    params = parameters()
    others = twins(params)
    grads = gradients(params, 10)
    optimizer = Falling(params, 0.01, **options, foreach=foreach)
    with optimizer.straightened():  # before the first step there is nothing to do
        assert equal(params, others)
    feed(optimizer, params, grads)
    feed(AdamW(others, 0.01, (0.9, 0.95)), others, grads)
    w, state = [bits(p) for p in params], repr(optimizer.state_dict())
    with optimizer.straightened():
        z = [bits(p) for p in params]
        with optimizer.straightened():
            assert [bits(p) for p in params] == z
        assert [bits(p) for p in params] == z
        assert z != w
        assert all(relative_error(p, q) <= 2e-6 for p, q in zip(params, others, strict=True))
    assert [bits(p) for p in params] == w
    assert repr(optimizer.state_dict()) == state
    with pytest.raises(KeyError), optimizer.straightened():
        raise KeyError
    assert [bits(p) for p in params] == w
    assert repr(optimizer.state_dict()) == state


@pytest.mark.parametrize("depth", [1, 2])
@every_variant
def test_straightened_refuses_what_it_would_undo(options: dict[str, Any], depth: int) -> None:
    """And only inside: afterwards training goes on."""
    params = parameters()
    optimizer = Falling(params, 0.01, **options)
    feed(optimizer, params, gradients(params, 2))
    saved = copy.deepcopy(optimizer.state_dict())
    with optimizer.straightened():
        if depth == 2:
            with optimizer.straightened():
                pass
        with pytest.raises(RuntimeError, match=r"step\(\) inside straightened\(\)"):
            optimizer.step()
        with pytest.raises(RuntimeError, match=r"load_state_dict\(\) inside straightened\(\)"):
            optimizer.load_state_dict(saved)
    feed(optimizer, params, gradients(params, 2))
    optimizer.load_state_dict(saved)


def test_straightened_gives_back_what_shares_memory() -> None:
    """Two parameters tied by ``.data``, as one did before modules could share them."""
    a, b = (torch.nn.Parameter(x) for x in parameters(((5, 3), (5, 3))))
    b.data = a.data
    optimizer = Falling([a, b], 0.1)
    feed(optimizer, [a, b], gradients([a, b], 5))
    w = a.detach().clone()
    with optimizer.straightened():
        assert not torch.equal(a, w)
    assert torch.equal(a, w)


def test_evaluation_gives_z_and_leads_back() -> None:
    """By eval() and train(), to rounding; a state dict says in which mode it was saved; a step is refused between."""
    params = parameters(dtype=torch.float64)
    optimizer = Falling(params, 0.01)
    feed(optimizer, params, gradients(params, 5))
    w = twins(params)
    with optimizer.straightened():
        z = twins(params)
    optimizer.eval()
    optimizer.eval()
    assert equal(params, z)
    with optimizer.straightened():
        assert equal(params, z)
    with pytest.raises(RuntimeError, match=r"call optimizer\.train\(\) first"):
        optimizer.step()
    others = twins(params)
    other = HATAM(others, 0.01)
    other.load_state_dict(through_a_file(optimizer.state_dict()))
    for o, own in ((optimizer, params), (other, others)):
        o.train()
        assert all(relative_error(p, q) <= 1e-15 for p, q in zip(own, w, strict=True))
        feed(o, own, gradients(own, 5, seed=2))
    assert all(relative_error(p, q) <= 1e-14 for p, q in zip(params, others, strict=True))


def test_weights_that_are_put_back_in_evaluation_are_not_displaced_twice() -> None:
    """As by early stopping."""
    params = parameters(dtype=torch.float64)
    optimizer = Falling(params, 0.01)
    feed(optimizer, params, gradients(params, 5))
    with optimizer.straightened():
        best = twins(params)
    feed(optimizer, params, gradients(params, 5, seed=2))
    optimizer.eval()
    with torch.no_grad():
        for p, x in zip(params, best, strict=True):
            p.copy_(x)
    optimizer.train()
    with optimizer.straightened():
        assert all(relative_error(p, q) <= 1e-15 for p, q in zip(params, best, strict=True))


@pytest.mark.parametrize("path", [{"foreach": False, "fused": False}, {"foreach": True}, {}], ids=str)
def test_a_weight_that_is_infinite_leaves_the_ratio(path: dict[str, Any]) -> None:
    params = parameters([(6, 4)])
    optimizer = Falling(params, 0.01, **path)
    feed(optimizer, params, gradients(params, 5))
    ratio = optimizer.state[params[0]]["rms_ratio"].clone()
    with torch.no_grad():
        params[0][0, 0] = math.inf
    feed(optimizer, params, gradients(params, 5))
    assert torch.equal(optimizer.state[params[0]]["rms_ratio"], ratio)


@pytest.mark.parametrize("path", [{"foreach": False}, {"foreach": True}, {}], ids=str)
def test_eps_0_before_the_first_gradient(path: dict[str, Any]) -> None:
    """Of one parameter it comes a step later than of the other."""
    params = parameters([(6,), (6,)])
    optimizer = Falling(params, 0.01, eps=0.0, hidden=True, **path)
    for step, row in enumerate(gradients(params, 3)):
        params[0].grad, params[1].grad = row[0], row[1] if step else None
        optimizer.step()
    assert all(p.isfinite().all() for p in params)


def test_what_others_keep_in_the_state_changes_nothing() -> None:
    params = parameters()
    others = twins(params)
    optimizer, adamw = Falling(params, 0.01, gamma=0.0, betas=(0.9, 0.999)), AdamW(others, 0.01)
    for p in params:
        optimizer.state[p]["note"] = "mine"
    for o, own in ((optimizer, params), (adamw, others)):
        feed(o, own, gradients(params, 3))
    assert equal(params, others)
    assert all(optimizer.state[p].keys() == {"note", "step", "exp_avg", "exp_avg_sq"} for p in params)


def test_what_others_keep_in_the_state_does_not_hinder_straightening() -> None:
    params = parameters()
    optimizer = Falling(params, 0.01)
    for p in params:
        optimizer.state[p]["note"] = "mine"
    feed(optimizer, params, gradients(params, 3))
    before = twins(params)
    with optimizer.straightened():
        assert not equal(params, before)
    assert equal(params, before)


def test_a_checkpoint_from_inside_straightened_is_whole() -> None:
    """Parameters z with a reach of 0: a run resumed from it goes on from the same z."""
    params = parameters(dtype=torch.float64)
    grads = gradients(params, 10)
    optimizer = Falling(params, 0.01)
    feed(optimizer, params, grads[:5])
    with optimizer.straightened():
        others = twins(params)
        other = Falling(others, 0.01)
        other.load_state_dict(through_a_file(optimizer.state_dict()))
    feed(optimizer, params, grads[5:])
    feed(other, others, grads[5:])
    assert all(relative_error(p, q) <= 1e-14 for p, q in zip(params, others, strict=True))


# Parameters ---------------------------------------------------------------------------------------------------------


@every_variant
def test_named_parameters(options: dict[str, Any]) -> None:
    """The names go into checkpoints, and change nothing else."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1))
    other = copy.deepcopy(model)
    optimizer = Falling(model.named_parameters(), 0.01, **options)
    params, others = list(model.parameters()), list(other.parameters())
    grads = gradients(params, 5)
    feed(optimizer, params, grads)
    feed(Falling(other.parameters(), 0.01, **options), others, grads)
    assert equal(params, others)
    assert optimizer.state_dict()["param_groups"][0]["param_names"] == [n for n, _ in model.named_parameters()]


@pytest.mark.parametrize("change", [{"modulator": "relative"}, {"hidden": True}, {"gamma": 0.0}], ids=str)
@pytest.mark.parametrize("path", [{}, {"foreach": True}, {"foreach": False}], ids=["fused", "foreach", "single"])
def test_a_parameter_unfrozen_after_an_option_has_changed(change: dict[str, Any], path: dict[str, Any]) -> None:
    """It begins as any other: what the others keep of the option that was is not asked of it."""
    params = parameters()
    optimizer = Falling(params, 0.01, **path)
    for i in range(6):
        for p, grad in zip(params, gradients(params, 1, i)[0], strict=True):
            p.grad = grad if i >= 3 or p is not params[-1] else None
        if i == 3:
            optimizer.param_groups[0].update(change)
        optimizer.step()
    assert [optimizer.state[p]["step"].item() for p in params] == [6, 6, 3]
    assert all(p.isfinite().all() for p in params)


@pytest.mark.parametrize("lr", [0.01, torch.tensor(0.01)], ids=["float-lr", "tensor-lr"])
def test_a_group_added_in_mid_training(lr: float | Tensor) -> None:
    """It starts at step 1 with a peak of its own, while the groups before it go on as if nothing had happened."""
    params = parameters([(4, 3)] * 2)
    others = twins(params)
    grads = gradients(params, 10)
    optimizer = Falling(params[:1], copy.deepcopy(lr))
    feed(optimizer, params[:1], [row[:1] for row in grads[:5]])
    optimizer.add_param_group({"params": (p for p in params[1:]), "lr": 0.002, "modulator": "relative"})
    feed(optimizer, params, grads[5:])
    feed(Falling(others[:1], copy.deepcopy(lr)), others[:1], [row[:1] for row in grads])
    feed(Falling(others[1:], 0.002, modulator="relative"), others[1:], [row[1:] for row in grads[5:]])
    assert equal(params, others)
    assert [optimizer.state[p]["step"].item() for p in params] == [10, 5]
    assert optimizer.param_groups[1]["lr_peak"] == 0.004


def missing_group(saved: dict[str, Any]) -> None:
    saved["param_groups"].pop()


def other_shape(saved: dict[str, Any]) -> None:
    saved["state"][2]["exp_avg_sq"] = torch.ones(2)


def amsgrad(saved: dict[str, Any]) -> None:
    saved["state"][1]["max_exp_avg_sq"] = torch.ones(7)


def unknown_modulator(saved: dict[str, Any]) -> None:
    saved["param_groups"][1]["modulator"] = "next"


def of_an_older_hatam(saved: dict[str, Any]) -> None:
    saved["state"][0]["displacement_radius"] = torch.tensor(0.1)


def bad_lr(saved: dict[str, Any]) -> None:
    saved["param_groups"][0]["lr"] = math.nan


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            missing_group,
            r"groups of \[\d+\] tensors, the optimizer of \[1, \d+\]: a different number of parameter groups",
        ),
        (other_shape, r"'exp_avg_sq' of parameter number 1 of group 1 has shape \(2,\) .* must have .* \(\)"),
        (amsgrad, "amsgrad=True, .*number 0 of group 1"),
        (unknown_modulator, "modulator='next' is unknown"),
        (of_an_older_hatam, "the checkpoint has 'displacement_radius': it is of a HATAM before 0.1"),
        (bad_lr, "lr=nan is out of range"),
    ],
)
def test_a_checkpoint_that_does_not_fit_changes_nothing(spoil: Any, message: str) -> None:
    params = parameters()
    optimizer = HATAM([{"params": params[:1]}, {"params": params[1:], "lr": 0.02}], 0.01)
    feed(optimizer, params, gradients(params, 3))
    saved = through_a_file(optimizer.state_dict())
    feed(optimizer, params, gradients(params, 2))
    before = repr(optimizer.state_dict())
    spoil(saved)
    with pytest.raises(ValueError, match=message):
        optimizer.load_state_dict(saved)
    assert repr(optimizer.state_dict()) == before
