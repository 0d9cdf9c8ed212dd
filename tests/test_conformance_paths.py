"""The properties that torch asks of its own optimizers, asked of HATAM: its paths, one against another. The names are
torch's."""

from __future__ import annotations

import copy
import sys
import weakref
from typing import Any

import pytest
import torch
from conformance_info import (
    GPUS,
    Line,
    every_plain_input,
    train,
)
from conftest import Falling
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hatam import HATAM
from hatam.storage import REACH_STATE

if sys.version_info >= (3, 11):
    pass
else:
    pass

Options = dict[str, Any]
ONE_IN_TEN = {"rtol": 0.1, "atol": 0.1}
pytestmark = pytest.mark.compatible("torch's own optimizer tests", "run or adapted, on every path")


def network(device: str, dtype: torch.dtype) -> tuple[nn.Sequential, list[Tensor], Tensor]:
    """Layers of which one can be frozen, a 0-dim parameter with a constant gradient, and inputs."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1), nn.Sigmoid()).to(device, dtype)
    scalar = torch.zeros((), device=device, dtype=dtype, requires_grad=True)
    return model, [*model.parameters(), scalar], torch.arange(1, 7, dtype=dtype, device=device).reshape(3, 2) / 10


def same_steps(
    runs: list[tuple[nn.Sequential, list[Tensor], Tensor]], optimizers: list[HATAM], **tolerance: Any
) -> None:
    """Parameters and state of two optimizers agree after each step, also without gradients and with a layer frozen."""
    for i in range(7):
        for (model, params, x), optimizer in zip(runs, optimizers, strict=True):
            optimizer.zero_grad()
            model[2].requires_grad_(not 3 <= i < 5)
            if i != 2:
                model(x).sum().backward()
                params[-1].grad = torch.ones_like(params[-1])
            optimizer.step()
        for p, q in zip(runs[0][1], runs[1][1], strict=True):
            assert_close(q.cpu(), p.cpu(), **tolerance)
            one, other = (optimizer.state[x] for optimizer, x in zip(optimizers, (p, q), strict=True))
            assert one.keys() == other.keys()
            for key in one:
                coarse = p.dtype == torch.bfloat16 and key in REACH_STATE  # measured in the parameter's own few bits
                assert_close(other[key].cpu(), one[key].cpu(), **(ONE_IN_TEN if coarse else tolerance))
                other[key].copy_(one[key])
            q.data.copy_(p.data)


def paths_agree(device: str, dtype: torch.dtype, options: Options, flag: str, **tolerance: Any) -> list[HATAM]:
    """The path that a flag stands for, and the loop over tensors."""
    runs = [network(device, dtype) for _ in range(2)]
    others = {"foreach": False, "fused": False}
    optimizers = [Falling(runs[i][1], **options, **{**others, flag: bool(i)}) for i in range(2)]
    same_steps(runs, optimizers, **tolerance)
    return optimizers


@every_plain_input()
def test_foreach_matches_forloop(device: str, options: Options) -> None:
    paths_agree(device, torch.float64, options, "foreach")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@every_plain_input()
def test_fused_matches_forloop(device: str, options: Options, dtype: torch.dtype) -> None:
    small = {"eps": 0.1} if dtype == torch.float16 else {}
    # in bfloat16 an element near 0 keeps the rounding of what it was displaced by
    coarse = {"rtol": 1.6e-2, "atol": 1e-3} if dtype == torch.bfloat16 else {"rtol": 1e-3, "atol": 1e-5}
    paths_agree(device, dtype, {**options, **small}, "fused", **(coarse if dtype.itemsize == 2 else {}))


@every_plain_input(GPUS)
def test_fused_cpu_matches_cuda(device: str, options: Options) -> None:
    runs = [network(d, torch.float32) for d in ("cpu", "cuda")]
    options = {key: x for key, x in options.items() if key not in ("capturable", "lr")}
    same_steps(runs, [Falling(run[1], **options, fused=True) for run in runs], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("default", [torch.float64, torch.float16], ids=str)
@every_plain_input()
def test_set_default_dtype_works_with_foreach(device: str, options: Options, default: torch.dtype) -> None:
    """The count of steps is float32, and float64 only where that is the default."""
    torch.set_default_dtype(default)
    try:
        optimizers = paths_agree(device, torch.float64, options, "foreach", rtol=1e-4, atol=1e-5)
    finally:
        torch.set_default_dtype(torch.float32)
    counts = {state["step"].dtype for optimizer in optimizers for state in optimizer.state.values()}
    assert counts == {torch.float64 if default == torch.float64 else torch.float32}


@pytest.mark.parametrize("impl", ["foreach", "fused"])
@every_plain_input()
def test_mixed_device_dtype(device: str, options: Options, impl: str) -> None:
    """Parameters of four dtypes in one group."""
    rng = torch.Generator().manual_seed(0)
    dtypes = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    start = [torch.rand(2, 3, generator=rng).to(device, dtype) for dtype in dtypes]
    grads = [torch.rand(2, 3, generator=rng).to(device, dtype) for dtype in dtypes]
    ends = []
    for on in (False, True):
        params = [x.clone().requires_grad_() for x in start]
        optimizer = Falling(params, **{"eps": 1e-3, **options, "foreach": False, "fused": False, impl: on})
        for _ in range(3):
            for p, g in zip(params, grads, strict=True):
                p.grad = g.clone()
            optimizer.step()
        ends.append([p.detach() for p in params])
    for p, q in zip(*ends, strict=True):
        assert_close(p, q, rtol=5 * torch.finfo(p.dtype).eps, atol=2 * torch.finfo(p.dtype).eps)


class Live(TorchDispatchMode):
    """The most bytes that were alive at a time of the tensors that were made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: list[tuple[weakref.ref[Tensor], int]] = []
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        known = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        new = [x for x in tree_leaves(made) if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in known]
        self.alive = [kept for kept in self.alive if kept[0]() is not None]
        self.alive += [(weakref.ref(x), x.nbytes) for x in new]
        self.peak = max(self.peak, sum(size for _, size in self.alive))
        return made


@every_plain_input()
def test_peak_memory_foreach(device: str, options: Options) -> None:
    """Temporaries of one copy of all parameters at most (two), beyond what the loop over them needs."""
    peaks = []
    for foreach in (False, True):
        params = [torch.rand(16, 8, device=device, requires_grad=True) for _ in range(10)]
        optimizer = Falling(params, **options, foreach=foreach, fused=False)
        for p in params:
            p.grad = torch.rand_like(p)
        optimizer.step()
        with Live() as live:
            optimizer.step()
        peaks.append(live.peak)
    copies = 2 if options.get("modulator") == "relative" else 1
    assert 0 < peaks[0] < peaks[1] <= peaks[0] + copies * sum(p.nbytes for p in params)


@every_plain_input()
def test_defaults_changed_to_foreach(device: str, options: Options) -> None:
    """Not asked for a path, the step takes the fastest: of AdamW torch's choice, of HATAM the kernel."""
    ends = []
    for path in ({}, {"foreach": device == "cuda"} if options.get("gamma") == 0 else {"fused": True}):
        line = Line(device)
        train(line, Falling(line.params, **options, **path))
        ends.append([p.detach() for p in line.params])
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize("no_scale", [False, True], ids=["scaled", "unscaled"])
@every_plain_input()
def test_fused_does_not_step_if_foundinf(device: str, options: Options, no_scale: bool) -> None:
    params = [torch.ones(3, device=device, requires_grad=True) for _ in range(5)]
    optimizer = Falling(params, **options, fused=True)
    for steps in range(2):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.grad_scale = None if no_scale else torch.ones(1, device=device)
        optimizer.found_inf = torch.ones((), device=device)
        before = copy.deepcopy((params, optimizer.state_dict()["state"]))
        optimizer.step()
        assert all(map(torch.equal, params, before[0]))
        state = optimizer.state_dict()["state"]
        for i in range(len(params)):
            kept = before[1].get(i, {key: torch.zeros_like(x) for key, x in state.get(i, {}).items()})
            assert_close(state.get(i, {}), kept, rtol=0, atol=0, equal_nan=True)
        optimizer.found_inf.zero_()
        optimizer.step()
        assert all(state["step"] == steps + 1 for state in optimizer.state.values())


def test_fused_error_on_params_on_meta() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    with pytest.raises(RuntimeError, match="there is no fused kernel for parameters on 'meta'"):
        Falling(model.parameters(), fused=True)
    optimizer = Falling(model.parameters())
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert all(state["exp_avg"].is_meta for state in optimizer.state.values())
    Falling(model.to_empty(device="cpu").parameters(), fused=True)
