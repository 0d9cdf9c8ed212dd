"""follow(): the optimizer goes where its model goes, and nothing else does."""

from __future__ import annotations

import copy
import gc
import io
import weakref
from typing import Any

import pytest
import torch
from conftest import Falling, bits
from torch import nn

from hatam import HATAM, Straightened, follow, update_bn


def trained(model: nn.Module, steps: int = 4) -> Falling:
    """An optimizer that has an offset in the model's weights."""
    optimizer = Falling(model.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(3, 4)).square().sum().backward()
        optimizer.step()
    return optimizer


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Dropout(0.5), nn.Linear(8, 2))


def weights(model: nn.Module) -> list[bytes]:
    return [bits(p) for p in model.parameters()]


def test_it_goes_there_and_back() -> None:
    model = network()
    optimizer = trained(model)
    w = weights(model)
    with optimizer.straightened():
        z = weights(model)
    assert z != w
    handle = follow(model, optimizer)
    assert weights(model) == w
    for holder in (model, nn.ModuleList([model]), torch.compile(model, backend="eager")):
        holder.eval()
        assert weights(model) == z
        holder.train()
        assert all(torch.allclose(p, q) for p, q in zip(model.parameters(), of(w, model), strict=True))
    handle.remove()
    assert type(model) is nn.Sequential
    model.eval()
    assert weights(model) != z
    handle.remove()  # twice is once


def of(values: list[bytes], model: nn.Module) -> list[torch.Tensor]:
    pairs = zip(values, model.parameters(), strict=True)
    return [torch.frombuffer(bytearray(x), dtype=p.dtype).view_as(p) for x, p in pairs]


def test_a_model_in_evaluation_is_followed_at_once() -> None:
    model = network()
    optimizer = trained(model)
    with optimizer.straightened():
        z = weights(model)
    model.eval()
    follow(model, optimizer)
    assert weights(model) == z
    with pytest.raises(RuntimeError, match=r"call optimizer\.train"):
        optimizer.step()


def test_before_the_first_step_there_is_nothing_to_do() -> None:
    model = network()
    optimizer, before = HATAM(model.parameters()), weights(model)
    follow(model, optimizer)
    model.eval()
    model(torch.ones(1, 4))
    model.train()
    assert weights(model) == before
    assert not optimizer.state


def test_parts_do_not_move_it() -> None:
    """A part that is frozen in evaluation, as BatchNorm is for fine-tuning, leaves the weights alone."""
    model = network()
    optimizer = trained(model)
    follow(model, optimizer)
    before = weights(model)
    model[0].eval()
    assert weights(model) == before
    optimizer.step()


def test_copies_and_pickles_follow_nobody() -> None:
    model = network()
    optimizer = trained(model)
    follow(model, optimizer)
    w, file = weights(model), io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (
        copy.deepcopy(model),
        torch.load(file, weights_only=False),
        torch.optim.swa_utils.AveragedModel(model),
    ):
        assert "Sequential" in {type(m).__name__ for m in other.modules()}
        other.eval()
        assert weights(model) == w
        assert weights(other) == w
    assert type(copy.deepcopy(model)) is nn.Sequential


def test_an_optimizer_of_two_models_goes_back_with_the_last() -> None:
    one, two = network(), network()
    both = trained(nn.Sequential(one, nn.Linear(2, 4), two))
    for model in (one, two):
        follow(model, both)
    w = weights(one)
    one.eval()
    two.eval()
    z = weights(one)
    one.train()
    assert weights(one) == z != w
    two.train()
    both.step()


def test_a_model_of_two_optimizers() -> None:
    model = network()
    optimizers = [Falling(layer.parameters(), 0.01) for layer in (model[0], model[3])]
    for _ in range(3):
        model(torch.ones(3, 4)).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    follow(model, *optimizers)
    before = weights(model)
    model.eval()
    changed = [a != b for a, b in zip(weights(model), before, strict=True)]
    assert changed == [True, False, True, False]  # biases have no reach


def test_a_model_is_let_go() -> None:
    model = network()
    follow(model, trained(model))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_what_cannot_follow_is_refused() -> None:
    model = network()
    with pytest.raises(TypeError, match=r"AdamW has no train\(\)"):
        follow(model, torch.optim.AdamW(model.parameters()))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module"):
        follow(model.parameters(), HATAM(model.parameters()))  # type: ignore[type-var]
    with pytest.raises(TypeError, match="Sequential is a module"):
        follow(model, model)  # type: ignore[arg-type]
    assert type(model) is nn.Sequential


def test_statistics_at_the_point_to_evaluate() -> None:
    """Those of an average over the loader's batches there; the weights are what they were."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    optimizer = trained(model)
    loader = [torch.randn(16, 4) for _ in range(3)]
    before = weights(model)
    update_bn(loader, model, optimizer)
    assert weights(model) == before
    with optimizer.straightened(), torch.no_grad():
        means = torch.stack([model[0](x).mean(0) for x in loader]).mean(0)
    torch.testing.assert_close(model[1].running_mean, means)
    assert (model[0](loader[0]).mean(0) - means).abs().max() > 1e-4


@pytest.mark.parametrize("wrapped", [False, True], ids=["HATAM", "Straightened"])
def test_statistics_of_a_followed_model(wrapped: bool) -> None:
    """update_bn calls the model's train(), and a block's weights stay what they are."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    optimizer: Any = trained(model)
    if wrapped:
        optimizer = Straightened(torch.optim.SGD(model.parameters(), 0.1), travel=0.0)
        for lr in (0.1, 0.05, 0.05):
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
            model(torch.randn(16, 4)).square().sum().backward()
            optimizer.step()
    follow(model, optimizer)
    before = weights(model)
    update_bn([torch.randn(16, 4)], model, optimizer)
    assert weights(model) == before
    with optimizer.straightened():
        z = weights(model)
        assert z != before
        for switch in (model.eval, model.train):
            switch()
            assert weights(model) == z
        follow(model, optimizer)
        assert weights(model) == z
    assert weights(model) == before
