"""The properties that torch asks of its own optimizers, asked of HATAM: state dicts, hooks, copies. The names are
torch's."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conformance_info import GPUS, every_input, every_plain_input
from conftest import Falling, through_a_file
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.testing import assert_close

from hatam import HATAM

Options = dict[str, Any]
pytestmark = pytest.mark.compatible("torch's own optimizer tests", "run or adapted, on every path")
named = pytest.mark.parametrize("name", [False, True], ids=["plain", "named"])
loaded_into_named = pytest.mark.parametrize("name_other", [False, True], ids=["into-plain", "into-named"])


def primed(device: str, options: Options, steps: int = 3, name: bool = False) -> tuple[list[Tensor], HATAM]:
    """Two parameters that have been trained for a few steps, and their optimizer."""
    torch.manual_seed(0)
    params = [torch.randn(2, 3, device=device).requires_grad_(), torch.randn(2, device=device).requires_grad_()]
    optimizer = Falling(with_names(params) if name else params, **copy.deepcopy(options))
    train(params, optimizer, steps)
    return params, optimizer


def with_names(params: list[Tensor]) -> list[tuple[str, Tensor]]:
    return [(f"name{i}", p) for i, p in enumerate(params)]


def train(params: list[Tensor], optimizer: Optimizer, steps: int) -> None:
    for i in range(steps):
        for p in params:
            p.grad = torch.cos(p.detach() + i)
        optimizer.step()


def unnamed(state_dict: dict[str, Any]) -> dict[str, Any]:
    groups = [{key: x for key, x in group.items() if key != "param_names"} for group in state_dict["param_groups"]]
    return {**state_dict, "param_groups": groups}


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """State dicts to the last bit, names aside; NaN is NaN."""
    return repr_bits(unnamed(one)) == repr_bits(unnamed(other))


def repr_bits(x: Any) -> Any:
    if isinstance(x, dict):
        return {key: repr_bits(y) for key, y in x.items()}
    if isinstance(x, Tensor):
        return (x.dtype, x.shape, x.device.type, x.detach().cpu().contiguous().view(-1).view(torch.uint8).tolist())
    return list(map(repr_bits, x)) if isinstance(x, list) else x


@named
@loaded_into_named
@every_input()
def test_state_dict_deterministic(device: str, options: Options, name: bool, name_other: bool) -> None:
    """A copy that loads another's state goes on alike, and its state dict is the same."""
    params, optimizer = primed(device, options, 10, name)
    others, other = primed(device, options, 0, name_other)
    for q, p in zip(others, params, strict=True):
        q.data.copy_(p.data)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(10):
        train(params, optimizer, 1)
        train(others, other, 1)
        assert all(map(torch.equal, params, others))
    assert same(optimizer.state_dict(), other.state_dict())
    other.param_groups.extend(other.param_groups)
    assert repr_bits(unnamed(optimizer.state_dict())["param_groups"][-1]) == repr_bits(
        unnamed(other.state_dict())["param_groups"][-1]
    )


@every_input()
def test_can_load_older_state_dict(device: str, options: Options) -> None:
    """One without the options that came later, HATAM's own among them; steps go on."""
    params, optimizer = primed(device, options)
    older = copy.deepcopy(optimizer.state_dict())
    for group in older["param_groups"]:
        for key in group.keys() - {"params", "lr", "betas", "eps", "weight_decay"}:
            del group[key]
    optimizer.load_state_dict(older)
    train(params, optimizer, 1)
    assert all(bool(p.isfinite().all()) for p in params)
    assert all(state["step"] == 4 for state in optimizer.state.values())


@named
@loaded_into_named
@every_input()
def test_can_load_from_to_named_state_dict(device: str, options: Options, name: bool, name_other: bool) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(4, 2, 1, stride=2), nn.BatchNorm2d(2)).to(device)
    x = torch.rand(1, 4, 16, 16, device=device)
    optimizers = [
        Falling(model.named_parameters() if is_named else model.parameters(), **options)
        for is_named in (name, name_other)
    ]
    for i, optimizer in enumerate(optimizers):
        if i:
            optimizer.load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
        optimizer.zero_grad()
        model(x).sum().backward()
        optimizer.step()
    if name or name_other:
        names = optimizers[1].state_dict()["param_groups"][0]["param_names"]
        assert names == ["0.weight", "0.bias", "1.weight", "1.bias"]
    assert all(state["step"] == 2 for state in optimizers[1].state.values())


@named
@every_input()
def test_save_load_equality_with_weights_only(device: str, options: Options, name: bool) -> None:
    _, optimizer = primed(device, options, name=name)
    assert repr_bits(through_a_file(optimizer.state_dict())) == repr_bits(optimizer.state_dict())


@every_input()
def test_load_nontensor_step(device: str, options: Options) -> None:
    """The count as a number, as old versions of torch saved it."""
    params, optimizer = primed(device, options)
    others, other = primed(device, options)
    saved = copy.deepcopy(optimizer.state_dict())
    for state in saved["state"].values():
        state["step"] = state["step"].item()
    optimizer.load_state_dict(saved)
    train(params, optimizer, 2)
    train(others, other, 2)
    assert all(map(torch.equal, params, others))


@pytest.mark.parametrize("impl", ["fused", "capturable"])
@every_plain_input(GPUS)
def test_cpu_load_state_dict(device: str, options: Options, impl: str) -> None:
    """A checkpoint whose tensors were brought to the CPU, for parameters on the GPU."""
    options = {key: x for key, x in options.items() if key not in ("capturable", "lr")}
    params, optimizer = primed("cpu", options)
    on_gpu = [p.detach().cuda().requires_grad_() for p in params]
    other = Falling(on_gpu, **{**options, impl: True})
    saved = copy.deepcopy(optimizer.state_dict())
    for group in saved["param_groups"]:
        group[impl] = True
    other.load_state_dict(saved)
    train(params, optimizer, 1)
    train(on_gpu, other, 1)
    assert_close([p.detach().cpu() for p in on_gpu], [p.detach() for p in params])


@every_plain_input(GPUS)
def test_state_dict_with_cuda_params(device: str, options: Options) -> None:
    """A CPU optimizer's state loads beside parameters on the GPU, is not changed by it, and goes on alike."""
    options = {key: x for key, x in options.items() if key not in ("capturable", "lr")}
    params, optimizer = primed("cpu", options)
    saved = copy.deepcopy(optimizer.state_dict())
    before = copy.deepcopy(saved)
    on_gpu = [p.detach().cuda().requires_grad_() for p in params]
    other = Falling(on_gpu, **options)
    other.load_state_dict(saved)
    assert repr_bits(saved) == repr_bits(before)
    train(params, optimizer, 5)
    train(on_gpu, other, 5)
    assert_close([p.detach().cpu() for p in on_gpu], [p.detach() for p in params])


def mark(optimizer: Optimizer) -> None:
    optimizer.state["test"] = 1


def unmark(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    return {**state_dict, "marked": state_dict["state"].pop("test", None) is not None}


@every_input(skip=())
def test_state_dict_pre_hook(device: str, options: Options) -> None:
    _, optimizer = primed(device, options, 0)
    optimizer.register_state_dict_pre_hook(mark)
    assert optimizer.state_dict()["state"]["test"] == 1


@every_input(skip=())
def test_state_dict_post_hook(device: str, options: Options) -> None:
    _, optimizer = primed(device, options, 0)
    optimizer.register_state_dict_post_hook(unmark)
    assert optimizer.state_dict()["marked"] is False


@every_input(skip=())
def test_state_dict_pre_post_hook(device: str, options: Options) -> None:
    _, optimizer = primed(device, options, 0)
    optimizer.register_state_dict_pre_hook(mark)
    optimizer.register_state_dict_post_hook(unmark)
    state_dict = optimizer.state_dict()
    assert state_dict["marked"] is True
    assert "test" not in state_dict["state"]


def lr_of(lr: float, copied: bool) -> Callable[[Optimizer, dict[str, Any]], dict[str, Any] | None]:
    """A hook that sets lr in the state dict that is loaded, or in a copy of it."""

    def hook(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any] | None:
        found = copy.deepcopy(state_dict) if copied else state_dict
        found["param_groups"][0]["lr"] = lr
        return found if copied else None

    return hook


@every_input(skip=())
def test_load_state_dict_pre_hook_and_prepend(device: str, options: Options) -> None:
    """The later hook runs first if asked to, so that the other has the last word."""
    _, optimizer = primed(device, options, 0)
    state_dict = optimizer.state_dict()
    optimizer.register_load_state_dict_pre_hook(lr_of(0.002, copied=False))
    optimizer.load_state_dict(state_dict)
    assert optimizer.param_groups[0]["lr"] == 0.002
    optimizer.register_load_state_dict_pre_hook(lr_of(0.003, copied=True), prepend=True)
    optimizer.load_state_dict(state_dict)
    assert optimizer.param_groups[0]["lr"] == 0.002


def seen_after_loading(optimizer: Optimizer) -> None:
    optimizer.state["lr seen"] = optimizer.param_groups[0]["lr"]


@every_input(skip=())
def test_load_state_dict_post_hook(device: str, options: Options) -> None:
    _, optimizer = primed(device, options, 0)
    optimizer.register_load_state_dict_post_hook(seen_after_loading)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state["lr seen"] == optimizer.param_groups[0]["lr"]


@every_input(skip=())
def test_load_state_dict_pre_post_hook(device: str, options: Options) -> None:
    _, optimizer = primed(device, options, 0)
    optimizer.register_load_state_dict_pre_hook(lr_of(0.003, copied=True))
    optimizer.register_load_state_dict_post_hook(seen_after_loading)
    optimizer.load_state_dict(optimizer.state_dict())
    assert optimizer.state["lr seen"] == 0.003


def calls_around_steps(device: str, options: Options, register: str) -> list[tuple[Any, ...]]:
    """What a hook is called with over two steps; it is removed before a third."""
    params, optimizer = primed(device, {**options, "differentiable": False}, 0)
    calls: list[tuple[Any, ...]] = []
    handle = getattr(optimizer, register)(lambda *given: calls.append(given))
    train(params, optimizer, 2)
    handle.remove()
    train(params, optimizer, 1)
    return calls


@every_input()
def test_step_post_hook(device: str, options: Options) -> None:
    assert len(calls_around_steps(device, options, "register_step_post_hook")) == 2


@every_input()
def test_step_pre_hook(device: str, options: Options) -> None:
    assert len(calls_around_steps(device, options, "register_step_pre_hook")) == 2


@every_input()
def test_step_all_hooks(device: str, options: Options) -> None:
    """Everybody's hooks around the optimizer's own, for it and for another beside it."""
    params, optimizer = primed(device, options, 0)
    both, order = [optimizer, SGD(params, lr=0.1)], list[str]()
    handles = [register_optimizer_step_pre_hook(lambda *_: order.append("before all"))]
    handles += [register_optimizer_step_post_hook(lambda *_: order.append("after all"))]
    for one in both:
        handles += [one.register_step_pre_hook(lambda *_: order.append("before"))]
        handles += [one.register_step_post_hook(lambda *_: order.append("after"))]
    try:
        for i, one in enumerate(both):
            train(params, one, 1)
            assert order == ["before all", "before", "after", "after all"] * (i + 1)
    finally:
        for handle in handles:
            handle.remove()
    train(params, optimizer, 1)
    assert len(order) == 8


@every_input()
def test_deepcopy_copies_all_public_attrs(device: str, options: Options) -> None:
    _, optimizer = primed(device, options)
    copied = copy.deepcopy(optimizer)
    assert [key for key in vars(copied) if key[0] != "_"] == [key for key in vars(optimizer) if key[0] != "_"]
    assert same(copied.state_dict(), optimizer.state_dict())
