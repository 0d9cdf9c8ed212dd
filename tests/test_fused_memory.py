"""What the fused path remembers of its last step, and that nobody can move memory under its feet."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import Reaching, bits, gradients, kernel_calls, parameters, state_bits, twins

from hatam import HATAM
from hatam.fused import batches

SHAPES = ((5, 4), (7,), (3, 3))


def step(optimizer: HATAM, params: list[torch.nn.Parameter], grads: list[torch.Tensor]) -> None:
    for p, g in zip(params, grads, strict=True):
        p.grad = g.to(p.dtype).clone()
    optimizer.step()


def move_parameter(optimizer: HATAM, params: list[torch.nn.Parameter]) -> None:
    params[0].data = params[0].data.clone()


def transpose_in_place(optimizer: HATAM, params: list[torch.nn.Parameter]) -> None:
    """The same memory, read the other way round."""
    params[2].data = params[2].data.t()


def move_state(optimizer: HATAM, params: list[torch.nn.Parameter]) -> None:
    state = optimizer.state[params[1]]["exp_avg"]
    state.data = state.data.clone()


def replace_state(optimizer: HATAM, params: list[torch.nn.Parameter]) -> None:
    state = optimizer.state[params[1]]
    state.update({key: x.clone() for key, x in state.items()})


def tie(optimizer: HATAM, params: list[torch.nn.Parameter]) -> None:
    """Two parameters in one memory, of which no kernel may do both at once."""
    params[1].data = params[0].data.view(-1)[:7]


def reload(optimizer: HATAM, params: list[torch.nn.Parameter]) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


CHANGES = [move_parameter, transpose_in_place, move_state, replace_state, tie, reload]


@pytest.mark.parametrize("change", CHANGES, ids=[change.__name__ for change in CHANGES])
def test_what_changes_between_steps_is_seen(change: Callable[..., None]) -> None:
    """The same as an optimizer that remembers nothing."""
    params = parameters(SHAPES)
    others = twins(params)
    optimizer, other = Reaching(params, 0.01), Reaching(others, 0.01)
    for i, grads in enumerate(gradients(params, 6)):
        if i == 3:
            change(optimizer, params)
            change(other, others)
        step(optimizer, params, grads)
        other._gathered.clear()
        step(other, others, grads)
        assert [bits(p) for p in params] == [bits(p) for p in others]
    assert state_bits(optimizer) == state_bits(other)


def test_a_gradient_that_comes_and_goes() -> None:
    """The rows change with it."""
    params = parameters(SHAPES)
    others = twins(params)
    optimizer, other = Reaching(params, 0.01), Reaching(others, 0.01)
    for i, grads in enumerate(gradients(params, 6)):
        for one, ps in ((optimizer, params), (other, others)):
            for j, (p, g) in enumerate(zip(ps, grads, strict=True)):
                p.grad = None if j == i % 4 else g.clone()
            one.step()
        other._gathered.clear()
    assert state_bits(optimizer) == state_bits(other)


def test_tensors_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as they stay what they are; another ε or dtype is another question."""
    asked: list[int] = []
    plan_batches = batches.plan_batches

    def counted(*arguments: Any) -> Any:
        asked.append(1)
        return plan_batches(*arguments)

    monkeypatch.setattr("hatam.fused.plan_batches", counted)
    params = parameters(SHAPES)
    optimizer = Reaching(params, 0.01)
    with kernel_calls() as taken:
        for i, grads in enumerate(gradients(params, 5)):
            optimizer.param_groups[0]["lr"] = 0.01 / (i + 1)
            step(optimizer, params, grads)
    assert (len(asked), taken) == (1, [3] * 5)
    optimizer.param_groups[0]["eps"] = 1e-20
    step(optimizer, params, grads)
    assert len(asked) == 2


def test_an_optimizer_lets_its_tensors_go() -> None:
    params = parameters(SHAPES)
    optimizer = Reaching(params, 0.01)
    for grads in gradients(params, 2):
        step(optimizer, params, grads)
    state = weakref.ref(optimizer.state[params[0]]["exp_avg"])
    optimizer.load_state_dict(optimizer.state_dict() | {"state": {}})
    gc.collect()
    assert state() is None


def test_an_optimizer_lets_gradients_go() -> None:
    """Their memory is free again after ``zero_grad()``, in a step that finds everything as it was, too."""
    params = parameters(SHAPES)
    optimizer = Reaching(params, 0.01)
    for grads in gradients(params, 3):
        step(optimizer, params, grads)
        held = [weakref.ref(p.grad) for p in params if p.grad is not None]
        optimizer.zero_grad()
        del grads
        gc.collect()
        assert [one() for one in held] == [None] * len(params)
