"""What wraps an optimizer: the compiler, autograd, closures."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from conftest import (
    Falling,
    cosine,
    every_variant,
    generator,
    gradients,
    parameters,
    twins,
)
from torch import Tensor

from hatam import HATAM

# torch.compile ------------------------------------------------------------------------------------------------------


@pytest.mark.compatible("torch.compile", "one compile of the step while lr, γ and weight decay change")
@every_variant
def test_compiled_step_is_the_eager_step(options: dict[str, Any]) -> None:
    """A changing lr (a tensor), γ or weight decay does not compile it again: twice at most, without state and with."""
    import torch._dynamo.testing  # here, as it is slow to import

    torch._dynamo.reset()
    params = parameters([(4, 3), (5,)])
    others = twins(params)
    optimizer = HATAM(params, torch.tensor(0.01), **{**options, "hidden": None})
    eager = HATAM(others, torch.tensor(0.01), **{**options, "hidden": None})
    counter = torch._dynamo.testing.CompileCounterWithBackend("inductor")
    compiled = torch.compile(optimizer.step, backend=counter)
    counts = []
    for row, lr in zip(gradients(params, 10), cosine(11, 0.01, 2), strict=False):
        for p, q, g in zip(params, others, row, strict=True):
            p.grad, q.grad = g.clone(), g.clone()
        for o in (optimizer, eager):
            group = o.param_groups[0]
            group["lr"].fill_(lr)
            group.update(gamma=0.99 * group["gamma"], weight_decay=1.1 * group["weight_decay"])
        compiled()
        eager.step()
        counts.append(counter.frame_count)
        for p, q in zip(params, others, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)
    assert counts[0] >= 1, "nothing was compiled"
    assert counts[-1] == counts[1], f"compiled again: {counts}"
    with optimizer.straightened(), eager.straightened():
        for p, q in zip(params, others, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6)


# Autograd through the step ------------------------------------------------------------------------------------------


@pytest.mark.compatible("differentiable=True", "gradcheck through four steps, lr too")
@every_variant
def test_gradcheck_through_four_steps(options: dict[str, Any]) -> None:
    """The derivative of where training ends by where it starts and by lr, gradients of the loss included."""
    rng = generator()
    target = torch.randn(4, generator=rng, dtype=torch.float64)
    curvature = torch.randn(4, generator=rng, dtype=torch.float64).exp()

    def loss(q: Tensor) -> Tensor:
        return (curvature * (q - target) ** 2).sum() + torch.sin(3 * q).sum()

    def train(x: Tensor, lr: Tensor) -> Tensor:
        p = x.clone()
        optimizer = HATAM([torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))], lr, differentiable=True, **options)
        optimizer.param_groups[0]["lr_peak"] = torch.tensor(0.1, dtype=torch.float64)
        optimizer.param_groups[0]["params"][0] = p  # a parameter must be a leaf, and this one must not
        for _ in range(4):
            q = p.clone() if p.requires_grad else p.clone().requires_grad_()
            (g,) = torch.autograd.grad(loss(q), q, create_graph=True)
            p.grad = g
            optimizer.step()
        return p

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        x = torch.randn(4, generator=rng, dtype=torch.float64, requires_grad=True)
        lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(train, (x, lr))


# Closures -----------------------------------------------------------------------------------------------------------


@pytest.mark.compatible("closures", "called once, with gradients on; its loss comes back")
@every_variant
def test_closure(options: dict[str, Any]) -> None:
    """Called once, with gradients on, also under no_grad; its loss comes back."""
    (param,) = parameters([(3,)])
    (other,) = twins([param])
    optimizer, plain = Falling([param], 0.01, **options), Falling([other], 0.01, **options)
    calls = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = (param**2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        for _ in range(3):
            expected = (param**2).sum()
            assert torch.equal(optimizer.step(closure), expected)
    for _ in range(3):
        plain.zero_grad()
        (other**2).sum().backward()
        assert plain.step() is None
    assert calls == [True] * 3
    assert torch.equal(param, other)


def test_an_lr_that_requires_a_gradient_may_be_saved_and_copied() -> None:
    """Its peak is no leaf of the graph, which torch cannot copy."""
    params, lr = parameters(), torch.tensor(0.01, requires_grad=True)
    moving = [p.detach().clone().requires_grad_().clone() for p in params]
    optimizer = HATAM(moving, lr, differentiable=True)
    for p, g in zip(moving, gradients(params, 1)[0], strict=True):
        p.grad = g
    optimizer.step()
    assert optimizer.param_groups[0]["lr_peak"].requires_grad
    for p, state in zip(moving, optimizer.state.values(), strict=True):
        p.detach_()
        for x in state.values():
            x.detach_()
    optimizer.load_state_dict(optimizer.state_dict())
    assert copy.deepcopy(optimizer).param_groups[0]["lr_peak"] == lr
