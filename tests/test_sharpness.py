"""The flatness measures against dense matrices in float64, and that measuring moves nothing."""

from __future__ import annotations

import copy
import dataclasses
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatam.bench import sharpness
from hatam.bench.sharpness import KEYS, Hessian, flat_gradient, measure
from hatam.bench.tasks import Split, Task, all_tasks

CLASSES = 3


def make_task(batch_size: int = 16) -> Task:
    return dataclasses.replace(all_tasks()["mnist1d-mlp"], batch_size=batch_size)


def make_case(samples: int = 80) -> tuple[nn.Module, Split]:
    """A net of 53 parameters in float64, and its data."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Dropout(), nn.Linear(5, CLASSES)).double()
    split = Split(torch.randn(samples, 4).double(), torch.randint(CLASSES, (samples,)))
    model(split.x)  # BatchNorm's running statistics are not its start
    return model, split


def flat(model: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(model.parameters()).detach()


def loss_at(model: nn.Module, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """The mean loss as a function of the flat weights, written without the code that is tested."""
    names = [name for name, _ in model.named_parameters()]
    shapes = [p.shape for p in model.parameters()]
    pieces = w.split([shape.numel() for shape in shapes])
    values = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
    return F.cross_entropy(torch.func.functional_call(model, values, (x,)), y)


def dense_hessian(model: nn.Module, split: Split) -> Tensor:
    return torch.autograd.functional.hessian(lambda w: loss_at(model, w, *split), flat(model))


def in_order(split: Split) -> Split:
    """The split as the measures see it."""
    order = torch.randperm(len(split.y), generator=torch.Generator().manual_seed(0))
    return Split(split.x[order], split.y[order])


def test_hessian_against_the_dense_one() -> None:
    model, split = make_case()
    measured = measure(model, make_task(), split)
    dense = dense_hessian(model.eval(), split)
    assert measured["lambda_max"] == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=0.01)
    assert measured["trace"] == pytest.approx(float(dense.trace()), rel=1e-9)


def test_the_estimated_trace_against_the_dense_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """After some training, as it is used: a few large eigenvalues and many small ones."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 20), nn.Tanh(), nn.Linear(20, CLASSES)).double()
    split = make_case()[1]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(split.x), split.y).backward()
        optimizer.step()
    exact = float(dense_hessian(model, split).trace())
    monkeypatch.setattr(sharpness, "EXACT", 0)
    assert measure(model, make_task(), split)["trace"] == pytest.approx(exact, rel=0.05)


def test_measuring_repeats_and_moves_nothing() -> None:
    model, split = make_case(samples=1100)  # more than are measured
    F.cross_entropy(model(split.x), split.y).backward()
    before, gradients = copy.deepcopy(model.state_dict()), [p.grad.clone() for p in model.parameters()]
    random = torch.get_rng_state()
    first, second = (measure(model, make_task(), split) for _ in range(2))
    assert first == second
    assert tuple(first) == KEYS
    assert all(math.isfinite(number) for number in first.values())
    assert model.training
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True))


class Attention(nn.Module):
    """A language model's parts: tied weights, layer norm, fused attention, logits of shape (n, classes, length)."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x)
        h = h + F.scaled_dot_product_attention(h, h, h, is_causal=True)
        return (self.norm(h) @ self.embedding.weight.T).transpose(1, 2)


def test_a_language_model() -> None:
    torch.manual_seed(0)
    model = Attention().double()
    x, y = torch.randint(5, (40, 30)), torch.randint(5, (40, 30))
    task = dataclasses.replace(make_task(8), loss=lambda out, y: F.cross_entropy(out, y, reduction="none").mean(1))
    measured = measure(model, task, Split(x, y))
    x, y = in_order(Split(x, y))
    chosen = Split(x[:16], y[:16])  # 16 sequences of 30 targets: at most 500
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        dense = dense_hessian(model, chosen)
    assert measured["lambda_max"] == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=0.01)
    assert measured["trace"] == pytest.approx(float(dense.trace()), rel=1e-9)
    assert all(math.isfinite(number) for number in measured.values())


def test_products_are_those_of_finite_differences_through_a_layer_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, CLASSES)).double()
    split, w, v = make_case()[1], flat(model), torch.randn(63).double()
    params = list(model.parameters())
    gradient = flat_gradient(loss_at_parameters(model, split), params, create_graph=True)
    ahead, behind = (gradient_at_weights(model, w + t * v, split) for t in (1e-5, -1e-5))
    torch.testing.assert_close(Hessian(gradient, params).times(v), (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-8)


def loss_at_parameters(model: nn.Module, split: Split) -> Tensor:
    return F.cross_entropy(model(split.x), split.y)


def gradient_at_weights(model: nn.Module, w: Tensor, split: Split) -> Tensor:
    w = w.clone().requires_grad_()
    return torch.autograd.grad(loss_at(model, w, *split), w)[0]


def test_a_loss_that_is_not_finite_gives_nan() -> None:
    model, split = make_case()
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    assert all(math.isnan(number) for number in measure(model, make_task(), split).values())


def test_a_model_of_one_parameter() -> None:
    """Of which Lanczos knows nothing."""
    model, x = torch.nn.Linear(1, 1, bias=False), torch.tensor([[1.0], [2.0]])
    task = dataclasses.replace(make_task(), loss=lambda outputs, targets: outputs[:, 0] ** 2)
    assert measure(model, task, Split(x, torch.zeros(2)))["lambda_max"] == pytest.approx(5.0)


def test_a_flat_loss_is_flat() -> None:
    model, split = make_case()
    task = dataclasses.replace(make_task(), loss=lambda outputs, targets: 0 * outputs.sum(1) ** 2)
    assert set(measure(model, task, split).values()) == {0.0}
