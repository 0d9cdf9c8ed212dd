"""Wrong arguments are refused by name, value and range, wherever they come in, and leave nothing behind."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from conftest import bits, every_path, feed, gradients, parameters

from hatam import HATAM

NAN, INF = math.nan, math.inf

NUMBERS = {
    # name: its range in words, numbers outside it
    "lr": ("[0, inf)", [NAN, -1e-3, INF, -INF]),
    "eps": ("[0, inf)", [NAN, -1e-8, INF]),
    "weight_decay": ("[0, inf)", [NAN, -0.1, INF]),
    "gamma": ("[0, inf)", [NAN, -1.0, INF, -INF]),
    "travel": ("[0, inf)", [NAN, -1.0, INF, -INF]),
    "horizon": ("[0, inf]", [NAN, -1.0, -INF]),
    "fade": ("(0, 1]", [NAN, -0.1, 0.0, 1.1, INF]),
}
NOT_NUMBERS = ["1", True, np.array([1.0]), [0.1], 1j]  # True is 1 to Python, but never meant as a number

Case = tuple[dict[str, Any], type[Exception], list[str]]

BAD: list[Case] = [
    *[
        ({name: value}, ValueError, [name, repr(value), interval])
        for name, (interval, values) in NUMBERS.items()
        for value in values
    ],
    *[
        ({name: value}, TypeError, [name, repr(value), interval])
        for name, (interval, _) in NUMBERS.items()
        for value in [*NOT_NUMBERS, None]
    ],
    *[
        ({name: torch.tensor(0.5)}, TypeError, [name, "tensor(0.5", interval])
        for name, (interval, _) in NUMBERS.items()
        if name != "lr"
    ],
    *[
        ({"betas": pair}, error, [f"betas[{i}]", repr(pair[i]), "[0, 1)"])
        for pair, i, error in [
            ((1.0, 0.999), 0, ValueError),
            ((0.9, 1.0), 1, ValueError),
            ((-0.1, 0.999), 0, ValueError),
            ((0.9, NAN), 1, ValueError),
            ((INF, 0.999), 0, ValueError),
            (("0.9", 0.999), 0, TypeError),
            ((0.9, None), 1, TypeError),
            ((False, 0.999), 0, TypeError),
            ((torch.tensor(0.9), 0.999), 0, TypeError),
            ((0.9, torch.tensor(0.999)), 1, TypeError),
            ((np.array([0.9]), 0.999), 0, TypeError),
        ]
    ],
    *[
        ({"betas": value}, TypeError, ["betas", repr(value), "(0.9, 0.95)"])
        for value in (0.9, None, "ab", (0.9,), (0.9, 0.99, 0.999), np.array([0.9, 0.999]), torch.tensor([0.9, 0.999]))
    ],
    ({"lr": torch.tensor([0.1, 0.2])}, ValueError, ["lr", "one element", "(2,)"]),
    ({"lr": torch.tensor([])}, ValueError, ["lr", "one element", "(0,)"]),
    ({"lr": torch.tensor(NAN)}, ValueError, ["lr", "nan", "[0, inf)"]),
    ({"lr": torch.tensor(-0.5)}, ValueError, ["lr", "-0.5", "[0, inf)"]),
    ({"lr": torch.tensor(0.1), "foreach": True}, ValueError, ["lr", "foreach", "capturable=True"]),
    ({"modulator": "relativ"}, ValueError, ["modulator", "'relativ'", "'uniform', 'relative'"]),
    ({"modulator": 1}, TypeError, ["modulator", "1", "string"]),
    *[
        ({name: value}, TypeError, [name, repr(value), "True"])
        for name in ("maximize", "capturable", "differentiable", "foreach", "fused", "hidden")
        for value in (1, "True", 0.0, *([] if name in ("foreach", "fused", "hidden") else [None]))
    ],
    ({"foreach": True, "differentiable": True}, ValueError, ["foreach=True", "differentiable=True"]),
    ({"fused": True, "foreach": True}, ValueError, ["fused=True", "foreach=True", "None"]),
    ({"fused": True, "differentiable": True}, ValueError, ["fused=True", "differentiable=True"]),
    ({"state_dtype": torch.float16}, ValueError, ["state_dtype=torch.float16", "torch.bfloat16", "8bit"]),
    ({"state_dtype": "bfloat16"}, ValueError, ["state_dtype='bfloat16'", "torch.bfloat16", "8bit"]),
    ({"state_dtype": torch.bfloat16, "differentiable": True}, ValueError, ["state_dtype", "differentiable=True"]),
    (
        {"bf16_stochastic_round": True, "differentiable": True},
        ValueError,
        ["round=True", "differentiable=True"],
    ),
    ({"bf16_stochastic_round": None}, TypeError, ["bf16_stochastic_round", "None", "True"]),
    ({"seed": -1}, ValueError, ["seed=-1", "[0, 2**32)"]),
    ({"seed": 2**32}, ValueError, ["seed=4294967296", "[0, 2**32)"]),
    ({"seed": 0.5}, TypeError, ["seed", "0.5", "float"]),
]

ids_of_bad = [", ".join(f"{name}={value!r}" for name, value in options.items()) for options, _, _ in BAD]
every_bad_case = pytest.mark.parametrize(("options", "error", "words"), BAD, ids=ids_of_bad)


def refuses(error: type[Exception], words: list[str], call: Callable[[], object]) -> None:
    """The call raises exactly this, and the message has all the words."""
    with pytest.raises(error) as raised:
        call()
    assert raised.type is error
    missing = [word for word in words if word not in str(raised.value)]
    assert not missing, f"{missing} not in {raised.value}"


@every_bad_case
def test_bad_argument(options: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    refuses(error, words, lambda: HATAM(parameters(), **options))


@every_bad_case
def test_bad_option_in_a_group(options: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    first, second = parameters(((2,), (3,)))
    refuses(error, words, lambda: HATAM([{"params": [first]}, {"params": [second], **options}]))


@every_bad_case
def test_bad_option_in_a_group_added_later(options: dict[str, Any], error: type[Exception], words: list[str]) -> None:
    """The refused group is not there, and the parameter is free for another try."""
    first, second = parameters(((2,), (3,)))
    optimizer = HATAM([first], 0.01)
    feed(optimizer, [first], gradients([first], 2))
    before = copy.deepcopy(optimizer.state_dict())
    refuses(error, words, lambda: optimizer.add_param_group({"params": [second], **options}))
    assert repr(optimizer.state_dict()) == repr(before)
    optimizer.add_param_group({"params": [second]})
    assert len(optimizer.param_groups) == 2


@pytest.mark.parametrize("empty", [list, tuple, lambda: iter(()), {}.items], ids=["list", "tuple", "iterator", "items"])
def test_no_parameters(empty: Callable[[], Any]) -> None:
    refuses(ValueError, ["params is empty", "model.parameters()"], lambda: HATAM(empty()))


@pytest.mark.parametrize("bad", [torch.zeros(2, requires_grad=True), 3, None, [1.0], ["w"]], ids=str)
def test_not_parameters(bad: Any) -> None:
    """A lone tensor is iterable, but not a list of parameters; torch's words are kept."""
    with pytest.raises(TypeError):
        HATAM(bad)


def test_not_a_leaf() -> None:
    with pytest.raises(ValueError, match="leaf"):
        HATAM([torch.ones(2, requires_grad=True) * 2])


@pytest.mark.parametrize("named", [False, True], ids=["plain", "named"])
@pytest.mark.parametrize("lazy", [False, True], ids=["list", "generator"])
def test_the_same_parameter_twice_in_a_group(lazy: bool, named: bool) -> None:
    """torch only warns."""
    p, q = parameters(((2,), (3,)))
    params: list[Any] = [("a", p), ("b", q), ("c", p)] if named else [p, q, p]
    refuses(
        ValueError,
        ["params", "number 2", "number 0", "once"],
        lambda: HATAM(x for x in params) if lazy else HATAM(params),
    )


def test_a_groups_dict_is_the_users_as_in_torch() -> None:
    group = {"params": iter([torch.ones(2, requires_grad=True)]), "lr": 0.1}
    optimizer = HATAM([group])
    group["lr"] = 0.5
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_the_same_parameter_in_two_groups() -> None:
    p, q = parameters(((2,), (3,)))
    with pytest.raises(ValueError, match="more than one parameter group"):
        HATAM([{"params": [p]}, {"params": [q, p]}])
    optimizer = HATAM([p])
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [q, p]})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [q]})


@every_path
@pytest.mark.parametrize(("named", "name"), [(True, "embedding.weight"), (False, "number 1 of group 1")])
def test_sparse_gradient(named: bool, name: str, foreach: bool) -> None:
    """Refused by name before anything has moved, also in the groups before it."""
    params = parameters(((3,), (2,), (4, 2)))
    labels = ["first", "second", "embedding.weight"]
    listed: list[Any] = list(zip(labels, params, strict=True)) if named else list(params)
    optimizer = HATAM([{"params": listed[:1]}, {"params": listed[1:]}], 0.01, foreach=foreach)
    feed(optimizer, params, gradients(params, 3))
    w, state = [bits(p) for p in params], repr(optimizer.state_dict())
    params[2].grad = torch.ones(4, 2).to_sparse()
    refuses(RuntimeError, [name, "sparse", "SparseAdam"], optimizer.step)
    assert [bits(p) for p in params] == w
    assert repr(optimizer.state_dict()) == state


@pytest.mark.parametrize(
    "options",
    [
        {"lr": 0.5},
        {"lr": torch.tensor(0.5)},
        {"lr": 0},
        {"betas": (0.0, 0.0)},
        {"betas": [0.5, 0.9]},
        {"eps": 0.0},
        {"weight_decay": 0},
        {"gamma": 2},
        {"modulator": "relative"},
        {"hidden": True},
        {"fade": 1.0},
        {"maximize": True},
        {"foreach": True},
        {"foreach": False},
        {"differentiable": True},
        {"fused": False},
        {"lr": np.float64(0.1)},  # registered as a real number
    ],
    ids=str,
)
def test_every_option_is_valid_in_a_group(options: dict[str, Any]) -> None:
    """And is that group's alone: the group before it moves as if it were by itself, as no group shares anything."""
    params = parameters(((4,), (4,)))
    alone = parameters(((4,), (4,)))[:1]
    grads = gradients(params, 3)
    optimizer = HATAM([{"params": params[:1]}, {"params": params[1:], **options}], 0.01)
    if options.get("differentiable"):
        # what autograd records may not write into leaves
        optimizer.param_groups[1]["params"][0] = params[1].detach().clone()
        params[1] = optimizer.param_groups[1]["params"][0]
    feed(optimizer, params, grads)
    feed(HATAM(alone, 0.01), alone, [row[:1] for row in grads])
    assert torch.equal(params[0], alone[0])
    assert params[1].isfinite().all()
    for name, value in options.items():
        assert optimizer.param_groups[1][name] == value


def test_a_call_written_for_adamw_goes_on_working() -> None:
    """Positional arguments in AdamW's order; amsgrad where it says no."""
    ours, theirs = (list(inspect.signature(each).parameters) for each in (HATAM, torch.optim.AdamW))
    assert ours[: theirs.index("amsgrad") + 1] == theirs[: theirs.index("amsgrad") + 1]
    params = parameters(((4,),))
    (group,) = HATAM(params, 1e-3, (0.8, 0.9), 1e-7, 0.1, False).param_groups
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.8, 0.9), 1e-7, 0.1)
    with pytest.raises(ValueError, match="amsgrad=True is not supported: it must be False"):
        HATAM(params, amsgrad=True)


@pytest.mark.parametrize(("gamma", "error"), [(-1.0, ValueError), (NAN, ValueError), ("1", TypeError)])
def test_a_gamma_changed_in_mid_training_is_looked_at_before_anything_moves(gamma: Any, error: type[Exception]) -> None:
    params = parameters(((4,), (4,)))
    optimizer = HATAM([{"params": params[:1]}, {"params": params[1:]}], 0.01)
    feed(optimizer, params, gradients(params, 1))
    before = [bits(p) for p in params]
    optimizer.param_groups[1]["gamma"] = gamma
    with pytest.raises(error, match=r"gamma.* in \[0, inf\)"):
        feed(optimizer, params, gradients(params, 1))
    assert [bits(p) for p in params] == before
    optimizer.param_groups[1]["gamma"] = 2
    feed(optimizer, params, gradients(params, 1))


def test_betas_in_a_list_are_looked_at_again_where_they_change_in_place() -> None:
    params = parameters(((4,),))
    optimizer = HATAM(params, 0.01, betas=[0.9, 0.95])
    feed(optimizer, params, gradients(params, 1))
    optimizer.param_groups[0]["betas"][1] = 1.0
    with pytest.raises(ValueError, match=r"betas.* in \[0, 1\)"):
        feed(optimizer, params, gradients(params, 1))
