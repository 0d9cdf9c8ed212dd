"""State and parameters in fewer bits: what they cost, and what checkpoints and copies keep of them."""

from __future__ import annotations

import copy
import importlib.util
import pickle
from typing import Any

import pytest
import torch
from conftest import (
    Falling,
    bits,
    cosine,
    equal,
    feed,
    gradients,
    kernel_calls,
    parameters,
    state_bits,
    through_a_file,
)
from torch import Tensor
from torch.optim import AdamW

from hatam import HATAM
from hatam.storage import MOMENTS, is_quantized

BF16, FLOAT = torch.bfloat16, torch.float32
every_state_dtype = pytest.mark.parametrize("state_dtype", [None, FLOAT, BF16, "8bit"], ids=str)
every_dtype = pytest.mark.parametrize("dtype", [FLOAT, BF16], ids=str)
every_fused = pytest.mark.parametrize("fused", [True, False], ids=["kernel", "unfused"])


def dtypes(optimizer: HATAM) -> list[dict[str, Any]]:
    """Class and dtype of every state tensor."""
    return [{key: (type(x).__name__, x.dtype) for key, x in state.items()} for state in optimizer.state.values()]


# What it costs ------------------------------------------------------------------------------------------------------

SIZES: dict[str, tuple[torch.dtype, dict[str, Any], float]] = {
    "gamma-0-bf16": (FLOAT, {"gamma": 0.0, "state_dtype": BF16}, 6),
    "relative-bf16": (FLOAT, {"modulator": "relative", "state_dtype": BF16}, 6),
    "bf16-None": (BF16, {}, 4),
    "bf16-random": (BF16, {"bf16_stochastic_round": True}, 4),
    "bf16-bf16": (BF16, {"state_dtype": BF16}, 6),
    "bf16-float32": (BF16, {"state_dtype": FLOAT}, 8),
    "float64-None": (torch.float64, {}, 16),
    "float64-float32": (torch.float64, {"state_dtype": FLOAT}, 16),
    "float64-bf16": (torch.float64, {"state_dtype": BF16}, 10),
    "complex-bf16": (torch.complex64, {"state_dtype": BF16}, 16),
    "float16-float32": (torch.float16, {"state_dtype": FLOAT}, 8),
    "8bit": (FLOAT, {"state_dtype": "8bit"}, 2 + 2 * 4 / 256),
    "bf16-8bit": (BF16, {"state_dtype": "8bit"}, 2 + 2 * 4 / 256),
}


def size(x: Tensor) -> int:
    """Bytes; of a quantized tensor those of codes and scales, without its table of 1 KiB."""
    parts = [x.codes, x.scale] if is_quantized(x) else [x]
    return sum(part.numel() * part.element_size() for part in parts)


@pytest.mark.parametrize(("dtype", "options", "expected"), SIZES.values(), ids=SIZES.keys())
def test_bytes_of_state_per_parameter(dtype: torch.dtype, options: dict[str, Any], expected: float) -> None:
    """Exactly, besides 0-dim scalars."""
    (p,) = parameters([(128, 256)], dtype)
    optimizer = Falling([p], 0.01, **options)
    feed(optimizer, [p], gradients([p], 2))
    assert sum(size(x) for x in optimizer.state[p].values() if x.dim()) == expected * p.numel()
    assert p.isfinite().all()


@pytest.mark.parametrize("shape", [(), (0,), (4095,), (64, 63), (4097,)], ids=str)
def test_small_and_odd_tensors_stay_in_float32(shape: tuple[int, ...]) -> None:
    """As in torchao: fewer than 4,096 elements, or not whole blocks of 256."""
    (p,) = parameters([shape], BF16)
    optimizer = Falling([p], 0.01, state_dtype="8bit")
    feed(optimizer, [p], gradients([p], 2))
    assert all(optimizer.state[p][key].dtype == FLOAT for key in MOMENTS)
    assert not any(is_quantized(x) for x in optimizer.state[p].values())


def test_8bit_without_torchao(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused at construction, with the remedy."""
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "torchao" else found(name, *rest)
    )
    with pytest.raises(ValueError, match=r"state_dtype='8bit' needs torchao.*pip install 'hatam\[8bit\]'"):
        HATAM(parameters(), state_dtype="8bit")


# Checkpoints and copies ---------------------------------------------------------------------------------------------


@every_fused
@every_dtype
@every_state_dtype
@pytest.mark.parametrize(
    "options", [{}, {"modulator": "relative"}, {"gamma": 0.0}], ids=["uniform", "relative", "gamma-0"]
)
def test_resuming_from_a_file(options: dict[str, Any], state_dtype: Any, dtype: torch.dtype, fused: bool) -> None:
    """With weights_only=True into an optimizer of other options: every dtype is kept, and every later bit."""
    if state_dtype == "8bit" and fused:
        pytest.skip("the kernel takes no 8-bit state")
    params = parameters(((64, 64), (40,), ()), dtype)
    grads, lrs = gradients(params, 6), cosine(6, 0.01, 2)
    optimizer = Falling(params, 0.01, **options, state_dtype=state_dtype, fused=fused, seed=3)
    feed(optimizer, params, grads[:3], lrs[:3])
    saved = through_a_file({"optimizer": optimizer.state_dict(), "params": [p.detach() for p in params]})
    others = [torch.nn.Parameter(p) for p in saved["params"]]
    other = Falling(others, 0.5)
    other.load_state_dict(saved["optimizer"])
    assert dtypes(other) == dtypes(optimizer)
    assert state_bits(other) == state_bits(optimizer)
    feed(optimizer, params, grads[3:], lrs[3:])
    feed(other, others, grads[3:], lrs[3:])
    assert equal(params, others)
    assert state_bits(other) == state_bits(optimizer)
    assert dtypes(other) == dtypes(optimizer)


@every_state_dtype
@pytest.mark.parametrize("state", [FLOAT, BF16], ids=["from-float32", "from-bf16"])
def test_an_adamw_checkpoint_keeps_its_dtypes(state: torch.dtype, state_dtype: Any) -> None:
    """float32 state goes on in float32 for bfloat16 parameters, in the kernel too, whatever new state would be."""
    source = parameters([(64, 64)], state)
    adamw = AdamW(source, 0.01)
    feed(adamw, source, gradients(source, 5))
    params = [torch.nn.Parameter(p.detach().to(BF16)) for p in source]
    optimizer = Falling(params, 0.01, state_dtype=state_dtype, bf16_stochastic_round=True)
    optimizer.load_state_dict(through_a_file(adamw.state_dict()))
    optimizer.param_groups[0]["lr_peak"] = 0.02
    for key in MOMENTS:
        assert optimizer.state[params[0]][key].dtype == state
        assert torch.equal(optimizer.state[params[0]][key], adamw.state[source[0]][key])
    with kernel_calls() as calls:
        feed(optimizer, params, gradients(params, 5))
    assert calls == [1] * 5
    assert all(optimizer.state[params[0]][key].dtype == state for key in MOMENTS)
    assert params[0].isfinite().all()


@every_dtype
@every_state_dtype
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
def test_copies_go_on_alike(copied: Any, state_dtype: Any, dtype: torch.dtype) -> None:
    """And share nothing with the original, which goes first."""
    params = parameters(((64, 64), (5,)), dtype)
    grads = gradients(params, 6)
    optimizer = Falling(params, 0.01, state_dtype=state_dtype, modulator="relative")
    feed(optimizer, params, grads[:3])
    others, other = copied((params, optimizer))
    assert dtypes(other) == dtypes(optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    before = state_bits(other)
    feed(optimizer, params, grads[3:])
    assert state_bits(other) == before
    feed(other, others, grads[3:])
    assert equal(params, others)
    optimizer.load_state_dict(saved)
    assert state_bits(optimizer) == before


@every_fused
@pytest.mark.parametrize(
    ("dtype", "options"),
    [(FLOAT, {"state_dtype": BF16}), (BF16, {"bf16_stochastic_round": True})],
    ids=["state", "parameters"],
)
def test_the_seed_decides(dtype: torch.dtype, options: dict[str, Any], fused: bool) -> None:
    """The same seed gives the same bits, whatever torch's own generator does; another seed gives others."""
    results = []
    for seed in (0, 0, 1, 2**32 - 1):
        torch.manual_seed(len(results))
        params = parameters([(500,), (500,)], dtype)
        optimizer = Falling(params, 0.01, **options, seed=seed, fused=fused)
        feed(optimizer, params, gradients(params, 3))
        results.append(state_bits(optimizer) + [bits(p) for p in params])
    assert results[0] == results[1]
    assert len({tuple(r) for r in results}) == 3


def test_replicas_that_start_together_stay_together() -> None:
    """Equal parameters with equal gradients at different places draw different numbers; at the same place the same."""
    (p,) = parameters([(1000,)], BF16)
    params = [torch.nn.Parameter(p.detach().clone()) for _ in range(2)]
    optimizer = Falling(params, 0.01, bf16_stochastic_round=True)
    (grads,) = gradients(params[:1], 1)
    feed(optimizer, params, [[grads[0], grads[0]]])
    first, second = (optimizer.state[q]["exp_avg"] for q in params)
    assert not torch.equal(*params)
    assert torch.equal(first, second) == torch.equal(first.float(), (0.1 * grads[0].float()).bfloat16().float())
