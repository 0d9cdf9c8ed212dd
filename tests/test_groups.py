"""Groups with and without weight decay: everyone once, in the right one, and in words who got what."""

from __future__ import annotations

import re

import pytest
import torch
from conftest import feed, gradients
from torch import nn

import hatam
from hatam import HATAM


class Net(nn.Module):
    """Norms of every kind, an embedding that the head shares, a bare parameter, and a frozen layer."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(7, 4)
        self.norms = nn.ModuleList(
            [nn.LayerNorm(4), nn.RMSNorm(4), nn.GroupNorm(2, 4), nn.BatchNorm1d(4), nn.InstanceNorm2d(4, affine=True)]
        )
        self.body = nn.Linear(4, 4)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.tokens.weight
        self.scale = nn.Parameter(torch.ones(4))


def names(group: dict) -> list[str]:
    return [name for name, _ in group["params"]]


def test_norms_biases_and_embeddings_are_spared() -> None:
    decayed, spared = hatam.param_groups(Net(), weight_decay=0.3)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert names(decayed) == ["scale", "body.weight"]
    assert {name.partition(".")[0] for name in names(spared)} == {"tokens", "norms", "body"}
    assert "head.weight" not in names(spared)  # it is the embedding's


def test_what_is_spared_has_no_reach_whatever_its_name() -> None:
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 2), nn.LayerNorm([3, 2]))
    by_name = hatam.describe(HATAM(model.named_parameters(), 0.01))
    by_module = hatam.describe(HATAM(hatam.param_groups(model), 0.01))
    reaching = [re.findall(r"(\S+) \([\d, ]+\), reach", text) for text in (by_name, by_module)]
    assert reaching == [["0.weight", "1.weight", "2.weight", "2.bias"], ["1.weight"]]
    torch.optim.AdamW(hatam.param_groups(model))


@pytest.mark.parametrize("module", [nn.LSTM(4, 4), nn.MultiheadAttention(4, 2, add_bias_kv=True)])
@pytest.mark.parametrize("inside", [False, True])
def test_biases_of_other_names(module: nn.Module, inside: bool) -> None:
    decayed = names(hatam.param_groups(nn.Sequential(module) if inside else module)[0])
    assert decayed
    assert not [name for name in decayed if "bias" in name]


def test_types_and_names_are_the_users() -> None:
    decayed, spared = hatam.param_groups(Net(), types=[nn.Linear], names=["scale", "norms.1.*"])
    assert names(spared) == ["scale", "tokens.weight", "norms.1.weight", "body.weight", "body.bias"]  # the head's
    assert "norms.0.weight" in names(decayed)
    (everything,) = hatam.param_groups(Net(), types=[], names=[])
    assert len(everything["params"]) == len([p for p in Net().parameters() if p.requires_grad])


class TheirRMSNorm(nn.Module):
    """A norm that is none of torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))


def test_norms_of_others_are_known_by_their_names_unless_types_are_given() -> None:
    model = nn.Sequential(TheirRMSNorm(), nn.Linear(4, 4))
    decayed, spared = hatam.param_groups(model)
    assert (names(decayed), names(spared)) == (["1.weight"], ["0.weight", "1.bias"])
    assert names(hatam.param_groups(model, types=[nn.LayerNorm])[0]) == ["0.weight", "1.weight"]


def test_a_shared_embedding_is_spared_whoever_comes_first() -> None:
    model = nn.Sequential(nn.Linear(4, 7, bias=False), nn.Embedding(7, 4))
    model[0].weight = model[1].weight
    (spared,) = hatam.param_groups(model)
    assert (names(spared), spared["weight_decay"]) == (["0.weight"], 0.0)
    with pytest.raises(ValueError, match=r"weight_decay=-1.0 is out of range"):
        hatam.param_groups(model, -1.0)


@pytest.mark.parametrize("bad", ["norm.*", "norms"])
def test_a_pattern_that_matches_nobody_is_named(bad: str) -> None:
    message = f"names: {bad!r} matches no parameter of the model"
    with pytest.raises(ValueError, match=rf"^{re.escape(message)}; .*such as 'scale'$"):
        hatam.param_groups(Net(), names=[bad])
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        hatam.param_groups(nn.Linear(2, 2).requires_grad_(False))
    with pytest.raises(TypeError, match="not of type generator; pass the model itself"):
        hatam.param_groups(nn.Linear(2, 2).parameters())


def test_described_before_and_after() -> None:
    groups = hatam.param_groups(Net(), weight_decay=0.3)
    text = hatam.describe(groups)
    assert text.startswith("weight_decay=0.3: 2 tensors, 20 parameters\n    scale (4,)\n    body.weight (4, 4)\n")
    optimizer = HATAM(groups, 0.01)
    reaching = text.replace("body.weight (4, 4)", "body.weight (4, 4), reach")
    assert hatam.describe(optimizer.param_groups) == reaching
    assert hatam.describe(optimizer) == reaching
    optimizer.param_groups[0]["hidden"] = False
    assert hatam.describe(optimizer) == text
    bare = HATAM(hatam.param_groups(Net(), weight_decay=0.3), 0.01, gamma=0.0)
    assert hatam.describe(bare) == text
    assert "weight_decay=0.0" in hatam.describe(torch.optim.LBFGS(Net().parameters()))
    assert "    number 0 (2, 2)" in hatam.describe(HATAM([torch.ones(2, 2, requires_grad=True)]).param_groups)


def test_described_before_it_is_initialized() -> None:
    text = hatam.describe(hatam.param_groups(nn.Sequential(nn.Linear(2, 3), nn.LazyLinear(4)), names=["1.*"]))
    assert text.startswith("weight_decay=0.01: 2 tensors, 9 parameters\n")
    assert text.endswith("    1.weight not initialized yet\n    1.bias not initialized yet")


def test_a_pattern_may_match_what_is_frozen() -> None:
    model = Net()
    model.scale.requires_grad_(False)
    assert all("scale" not in names(group) for group in hatam.param_groups(model, names=["scale"]))


def test_only_the_first_group_decays() -> None:
    """With gradients of 0 nothing else moves."""
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = HATAM(hatam.param_groups(model, weight_decay=0.5), 0.1)
    params = list(model.parameters())
    feed(optimizer, params, [[torch.zeros_like(g) for g in row] for row in gradients(params, 1)])
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name] * (0.95 if name == "0.weight" else 1.0))
