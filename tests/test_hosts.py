"""What wraps an optimizer: the compiler, autograd, mixed precision, closures, schedulers."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from conftest import (
    DEFAULT_FORMS,
    bits,
    cosine,
    equal,
    every_form,
    every_variant,
    generator,
    gradients,
    parameters,
    twins,
)
from torch import Tensor
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)

from hatam import HATAM

# torch.compile ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [DEFAULT_FORMS["decoupled"], DEFAULT_FORMS["published"]], ids=["decoupled", "published"]
)
def test_compiled_step_is_the_eager_step(options: dict[str, Any]) -> None:
    """A changing lr (a tensor), γ or weight decay does not compile it again: twice at most, without state and with."""
    import torch._dynamo.testing  # here, as it is slow to import

    torch._dynamo.reset()
    params = parameters([(4, 3), (5,)])
    others = twins(params)
    optimizer = HATAM(params, torch.tensor(0.01), **options)
    eager = HATAM(others, torch.tensor(0.01), **options)
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


@pytest.mark.parametrize("beta_c", [None, 0.5])
@every_variant
def test_gradcheck_through_four_steps(options: dict[str, Any], beta_c: float | None) -> None:
    """The derivative of where training ends by where it starts and by lr, gradients of the loss included."""
    rng = generator()
    target = torch.randn(4, generator=rng, dtype=torch.float64)
    curvature = torch.randn(4, generator=rng, dtype=torch.float64).exp()

    def loss(q: Tensor) -> Tensor:
        return (curvature * (q - target) ** 2).sum() + torch.sin(3 * q).sum()

    def train(x: Tensor, lr: Tensor) -> Tensor:
        p = x.clone()
        optimizer = HATAM(
            [torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))],
            lr,
            beta_c=beta_c,
            differentiable=True,
            gamma=1.5,
            **options,
        )
        optimizer.param_groups[0]["params"][0] = p  # a parameter must be a leaf, and this one must not
        for _ in range(4):
            q = p.clone()
            (g,) = torch.autograd.grad(loss(q), q, create_graph=True)
            p.grad = g
            optimizer.step()
        return p

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
        x = torch.randn(4, generator=rng, dtype=torch.float64, requires_grad=True)
        lr = torch.tensor(0.05, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(train, (x, lr))


# Mixed precision ----------------------------------------------------------------------------------------------------


@every_form
def test_a_step_that_gradscaler_skips_moves_nothing(options: dict[str, Any]) -> None:
    """Nor the state: no count, no e, no radius. A step that it does not skip is the step without a scaler."""
    params = parameters()
    others = twins(params)
    optimizer, plain = HATAM(params, 0.01, **options), HATAM(others, 0.01, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for i, row in enumerate(gradients(params, 6)):
        bad = i in (0, 3)
        w, state = [bits(p) for p in params], repr(optimizer.state_dict())
        scale = scaler.scale(torch.ones(())).item()
        for p, q, g in zip(params, others, row, strict=True):
            p.grad, q.grad = g * scale, g.clone()
        if bad:
            params[1].grad[2] = math.inf
        scaler.step(optimizer)
        scaler.update()
        if bad:
            assert [bits(p) for p in params] == w
            assert repr(optimizer.state_dict()) == state
        else:
            plain.step()
    assert equal(params, others)


# Closures -----------------------------------------------------------------------------------------------------------


@every_form
def test_closure(options: dict[str, Any]) -> None:
    """Called once, with gradients on, also under no_grad; its loss comes back."""
    (param,) = parameters([(3,)])
    (other,) = twins([param])
    optimizer, plain = HATAM([param], 0.01, **options), HATAM([other], 0.01, **options)
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


# Schedulers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda o: CosineAnnealingLR(o, 20), id="CosineAnnealingLR"),
        pytest.param(lambda o: CosineAnnealingWarmRestarts(o, 7), id="CosineAnnealingWarmRestarts"),
        pytest.param(lambda o: StepLR(o, 5), id="StepLR"),
        pytest.param(lambda o: LambdaLR(o, lambda t: 1 / (1 + t)), id="LambdaLR"),
        pytest.param(lambda o: OneCycleLR(o, 0.05, total_steps=25), id="OneCycleLR"),
        pytest.param(
            lambda o: SequentialLR(o, [LinearLR(o, 0.1, total_iters=5), CosineAnnealingLR(o, 15)], [5]),
            id="SequentialLR",
        ),
        pytest.param(lambda o: ReduceLROnPlateau(o, patience=0), id="ReduceLROnPlateau"),
    ],
)
@every_form
def test_schedulers(options: dict[str, Any], make: Any) -> None:
    """Training on a quadratic under each; saved and loaded half way with the optimizer, it goes on bit for bit."""

    def setup() -> tuple[torch.nn.Parameter, HATAM, LRScheduler]:
        (param,) = parameters([(20,)])
        optimizer = HATAM([param], 0.02, **options)
        return param, optimizer, make(optimizer)

    def train(param: torch.nn.Parameter, optimizer: HATAM, scheduler: LRScheduler, steps: int) -> list[float]:
        losses = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = (param**2).sum()
            loss.backward()
            optimizer.step()
            scheduler.step(*([1.0] if isinstance(scheduler, ReduceLROnPlateau) else []))
            losses.append(loss.item())
        return losses

    param, optimizer, scheduler = setup()
    first = train(param, optimizer, scheduler, 10)
    other, resumed, resumed_scheduler = setup()
    other.data.copy_(param.data)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed_scheduler.load_state_dict(scheduler.state_dict())
    second = train(param, optimizer, scheduler, 10)
    assert train(other, resumed, resumed_scheduler, 10) == second
    assert torch.equal(param, other)
    assert second[-1] < first[0]
