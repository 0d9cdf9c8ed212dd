"""Whatever comes in: a clear error that leaves everything as it was, or the right result."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from conftest import VARIANTS, Falling, bits, feed, gradients, oracles, parameters, state_bits, through_a_file
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hatam import HATAM

NUMBERS = st.one_of(
    st.floats(),
    st.sampled_from([0, 1, -1, 10**400, True, None, "0.1", (), [0.9, 0.99], (0.9,), ("a", 0.9), (0.9, math.nan)]),
    st.sampled_from([torch.tensor(0.1), torch.tensor([0.1, 0.2]), torch.tensor(math.nan), 1j]),
)
WORDS = st.sampled_from(["relative", "uniform", "lr", "8bit", "", "Relative", 0, None, []])
FLAGS = st.sampled_from([True, False, None, 0, 1, "yes", torch.float32, torch.bfloat16, torch.int64])
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(
        ("lr", "betas", "eps", "weight_decay", "gamma", "travel", "horizon", "fade", "seed"),
        NUMBERS,
    ),
    "modulator": WORDS,
    **dict.fromkeys(
        ("maximize", "hidden", "foreach", "differentiable", "fused", "state_dtype", "bf16_stochastic_round"), FLAGS
    ),
}
some_options = st.lists(st.sampled_from(sorted(OPTIONS)), max_size=3, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: OPTIONS[name] for name in names})
)


@given(options=some_options)
@settings(max_examples=400)
def test_constructor(options: dict[str, Any]) -> None:
    """An option that cannot be is refused by its name; with all others a step is taken and nothing becomes NaN."""
    params = parameters()
    try:
        optimizer = HATAM(params, **options)
    except (TypeError, ValueError, RuntimeError) as refused:
        message = str(refused)
    else:
        message = ""
    if message:
        assert any(name in message for name in options), message
        return
    if options.get("differentiable"):
        return
    for group in optimizer.param_groups:  # of any size, but the step must be
        group["lr"], group["weight_decay"] = min(float(group["lr"]), 1.0), min(group["weight_decay"], 1.0)
    feed(optimizer, params, gradients(params, 2))
    assert all(not p.isnan().any() for p in params)


SHAPES = ((), (0,), (1,), (7,), (4, 3), (2, 0, 3), (33, 9), (2, 3, 4), (64, 64))
LAYOUTS = ("contiguous", "transposed", "sliced", "expanded")
SPECIAL = (0.0, -0.0, math.nan, math.inf, -math.inf)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same numbers, otherwise in memory."""
    if layout == "transposed" and x.dim() > 1:
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if layout == "sliced" and x.dim():
        return torch.stack([x, torch.full_like(x, 7.0)], dim=-1)[..., 0]
    return x.clone()


a_tensor = st.fixed_dictionaries(
    {
        "shape": st.sampled_from(SHAPES),
        "dtype": st.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16]),
        "layout": st.sampled_from(LAYOUTS),
        "grad_layout": st.sampled_from(LAYOUTS),
        "scale": st.integers(-42, 30),
        "special": st.lists(st.sampled_from(SPECIAL), max_size=2),
    }
)


def drawn(kind: dict[str, Any], rng: torch.Generator) -> tuple[torch.nn.Parameter, list[Tensor]]:
    """A parameter and its gradients of four steps, of which the third has the special values."""
    shape, dtype = kind["shape"], kind["dtype"]
    param = torch.nn.Parameter(
        laid_out(torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype), kind["layout"])
    )
    grads = []
    for step in range(4):
        g = torch.randn(shape, generator=rng, dtype=torch.float64) * 10.0 ** kind["scale"]
        if step == 2 and g.numel():
            g.view(-1)[: len(kind["special"])] = torch.tensor(kind["special"], dtype=g.dtype)[: g.numel()]
        g = laid_out(g.to(dtype), kind["grad_layout"])
        if kind["grad_layout"] == "expanded" and g.dim():
            g = g[:1].expand(shape) if g.shape[0] else g
        grads.append(g)
    return param, grads


def run(kinds: list[dict[str, Any]], seed: int, options: dict[str, Any]) -> tuple[list[torch.nn.Parameter], HATAM]:
    rng = torch.Generator().manual_seed(seed)
    made = [drawn(kind, rng) for kind in kinds]
    params = [param for param, _ in made]
    optimizer = Falling(params, 0.01, **options)
    for step in range(4):
        for param, grads in made:
            param.grad = grads[step]
        optimizer.step()
    return params, optimizer


@pytest.mark.parametrize("path", [{}, {"foreach": True}], ids=["fused", "foreach"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@given(kinds=st.lists(a_tensor, min_size=1, max_size=3), seed=st.integers(0, 10**6))
@settings(max_examples=40)
def test_step(options: dict[str, Any], path: dict[str, Any], kinds: list[dict[str, Any]], seed: int) -> None:
    """Shapes, dtypes, layouts, tiny, huge and impossible gradients: every path does what the plain loop does."""
    params, _ = run(kinds, seed, {**options, **path})
    others, _ = run(kinds, seed, {**options, "foreach": False, "fused": False})
    for p, q in zip(params, others, strict=True):
        coarse = 2e-2 if p.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(p, q, rtol=coarse, atol=coarse, equal_nan=True)


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@given(kind=a_tensor, seed=st.integers(0, 10**6))
@settings(max_examples=40)
def test_step_against_the_reference(options: dict[str, Any], kind: dict[str, Any], seed: int) -> None:
    """In float64, where nothing overflows; and a coordinate suffers from no other's NaN or infinity."""
    kind = {**kind, "dtype": torch.float64, "special": []}
    rng = torch.Generator().manual_seed(seed)
    param, grads = drawn(kind, rng)
    if not param.numel():
        return
    optimizer = Falling([param], 0.01, **options)
    (oracle,) = oracles([param], optimizer)
    for g in grads:
        param.grad = g
        optimizer.step()
        oracle.step(g, 0.01)
    torch.testing.assert_close(param.detach(), oracle.w, rtol=1e-9, atol=1e-12)


def spoiled(saved: dict[str, Any], how: str, value: Any) -> Any:
    """A state dict with one thing wrong, or at least odd."""
    where, _, key = how.partition(" ")
    if where == "whole":
        return value
    if where == "top":
        saved[key] = value
    elif where == "group":
        saved["param_groups"][0][key] = value
    elif where == "state":
        saved["state"][1][key] = value
    elif where == "drop":
        for holder in (saved, saved["param_groups"][0], saved["state"][1]):
            holder.pop(key, None)
    return saved


KEYS = ("step", "exp_avg", "exp_avg_sq", "reach", "rms_ratio", "reach_mean")
HOW = [
    *["whole", "top state", "top param_groups", "top other"],
    *[f"group {key}" for key in ("params", *OPTIONS, "lr_peak", "reach_started", "unheard_of")],
    *[f"{where} {key}" for where in ("state", "drop") for key in (*KEYS, "lr", "betas", "param_groups", "params")],
]
VALUES = st.one_of(
    NUMBERS,
    st.sampled_from(
        [{}, [], [0, 1, 2], [2, 1, 0], [0, 0, 1], {"a": 1}, "x", torch.zeros(7), torch.zeros(5, 4), torch.zeros(())]
    ),
    st.sampled_from(
        [torch.zeros(7, dtype=torch.bfloat16), torch.full((7,), math.nan), torch.zeros(7, dtype=torch.int64)]
    ),
)


@pytest.mark.compatible("checkpoints", "refused before anything changes where they do not fit")
@given(how=st.sampled_from(HOW), value=VALUES)
@settings(max_examples=600)
def test_load_state_dict(how: str, value: Any) -> None:
    """A checkpoint that does not fit is refused and changes nothing; with one that does a step is taken."""
    params = parameters()
    optimizer = Falling(params, 0.01)
    feed(optimizer, params, gradients(params, 2))
    saved = spoiled(through_a_file(optimizer.state_dict()), how, copy.deepcopy(value))
    before = [bits(p) for p in params], state_bits(optimizer), repr(optimizer.param_groups)
    try:
        optimizer.load_state_dict(saved)
    except (TypeError, ValueError) as refused:
        message = str(refused)
    else:
        feed(optimizer, params, gradients(params, 1))
        return
    assert ([bits(p) for p in params], state_bits(optimizer), repr(optimizer.param_groups)) == before
    assert len(message) > 20
