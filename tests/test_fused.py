"""What the CPU kernel computes: against float64, against the unfused path, and however its work is split."""

from __future__ import annotations

import ctypes
import math
from typing import Any

import pytest
import torch
from conftest import (
    Falling,
    bits,
    cosine,
    equal,
    every_variant,
    feed,
    gradients,
    kernel_calls,
    oracles,
    parameters,
    relative_error,
    twins,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_reference import a_shape, compare, settings_of_a_run
from torch import Tensor

from hatam import HATAM, narrow
from hatam.fused import cpu
from hatam.storage import MOMENTS, REACH_STATE

BF16 = torch.bfloat16
BF16_UNIT, FLOAT_UNIT = 2.0**-7, torch.finfo(torch.float32).eps
BLOCK, CHUNK = 1024, 65536  # of cpu.c
STORAGE: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float64": (torch.float64, {}),
    "float64-as-float32": (torch.float64, {"state_dtype": torch.float32}),
    "float32": (torch.float32, {}),
    "float32-m-bf16": (torch.float32, {"state_dtype": BF16}),
    "bf16": (BF16, {}),
    "bf16-random": (BF16, {"bf16_stochastic_round": True}),
    "bf16-state-float32": (BF16, {"state_dtype": torch.float32}),
    "bf16-state-float32-random": (BF16, {"state_dtype": torch.float32, "bf16_stochastic_round": True}),
    "bf16-v-float32": (BF16, {"state_dtype": BF16}),
    "bf16-v-float32-random": (BF16, {"state_dtype": BF16, "bf16_stochastic_round": True}),
}
every_storage = pytest.mark.parametrize(("dtype", "storage"), STORAGE.values(), ids=STORAGE.keys())


# Against float64 ----------------------------------------------------------------------------------------------------


@every_variant
@settings(max_examples=8)
@given(
    shape=a_shape,
    run=settings_of_a_run,
    eps=st.sampled_from([1e-3, 1e-8, 1e-20, 1e-100]),
    lr=st.floats(1e-4, 0.1),
    seed=st.integers(0, 10**6),
)
def test_agrees_with_the_reference(
    options: dict[str, Any], shape: tuple[int, ...], run: dict[str, Any], eps: float, lr: float, seed: int
) -> None:
    """Any options, any shape, a schedule with warm-up that ends at 0; and the kernel did it once lr had fallen."""
    params = parameters([shape, (3,)], torch.float64, seed)
    optimizer = HATAM(params, **{**run, **options, "lr": lr, "eps": eps}, fused=True)
    with kernel_calls() as calls:
        compare(optimizer, params, oracles(params, optimizer), gradients(params, 20, seed + 1), cosine(20, lr, 4))
    assert calls == [2] * 16


@pytest.mark.parametrize(
    ("dtype", "eps", "taken"),
    [(torch.float64, 1e-200, True), (torch.float32, 1e-20, True), (torch.float64, 0.0, False)],
)
@every_variant
def test_a_tiny_eps(options: dict[str, Any], dtype: torch.dtype, eps: float, taken: bool) -> None:
    """The loops divide by it; where it is no normal number another path serves, as exactly."""
    params = parameters(dtype=dtype)
    optimizer = Falling(params, 0.01, eps=eps, **options, fused=True)
    references, grads = oracles(params, optimizer), gradients(params, 20)
    for row in grads:
        row[0][1, 2] *= 1e-10  # h is about as small as the gradients, so that in float32 its square is not normal
    with kernel_calls() as calls:
        for row in grads:
            feed(optimizer, params, [row])
            for oracle, g in zip(references, row, strict=True):
                oracle.step(g, 0.01)
    assert calls == ([3] * 20 if taken else [])
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    assert all(relative_error(p, oracle.w) <= tolerance for p, oracle in zip(params, references, strict=True))


# Against the unfused path -------------------------------------------------------------------------------------------


def check_stored(kernel: Tensor, other: Tensor, scale: Tensor, name: str) -> None:
    """Equal to some roundings of the arithmetic; in bfloat16 so nearly always equal, else one unit apart."""
    if kernel.dtype == BF16:
        x, y = kernel.detach().float(), other.detach().float()
        assert (x != y).sum() <= 1 + 0.004 * x.numel(), name
        assert torch.all((x - y).abs() <= BF16_UNIT * torch.maximum(x.abs(), y.abs()) + 16 * FLOAT_UNIT * scale), name
        return
    unit = torch.finfo(kernel.dtype).eps
    assert torch.all((kernel - other).abs() <= 16 * unit * torch.maximum(scale, other.abs())), name


@every_variant
@every_storage
def test_step_by_step_it_is_the_wide_path(
    options: dict[str, Any], dtype: torch.dtype, storage: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the same state both store the same: parameters, every moment with its random bits, every scalar.

    The unfused path is made to compute as the kernel does, in float32 where storage is bfloat16.
    """
    monkeypatch.setattr(narrow, "is_needed", lambda *_: True)
    params = parameters(((50, 41), (1100,), (3,), ()), dtype)
    others = twins(params)
    # A unit of an m in bfloat16 is as much of an offset, which may be far larger than the weight that it moves.
    reach = 100.0 if BF16 in (dtype, storage.get("state_dtype")) else 1.0
    optimizer = Falling(params, 0.01, **options, **storage, fused=True, seed=7)
    other = Falling(others, 0.01, **options, **storage, fused=False, seed=7)
    with kernel_calls() as calls:
        for row, lr in zip(gradients(params, 6), cosine(6, 0.01, 2), strict=True):
            feed(optimizer, params, [row], [lr])
            feed(other, others, [row], [lr])
            for p, q, g in zip(params, others, row, strict=True):
                state, other_state = optimizer.state[p], other.state[q]
                assert state.keys() == other_state.keys()
                scales = {"exp_avg_sq": g.abs() ** 2}
                for key in state.keys() & {*MOMENTS}:
                    assert state[key].dtype == other_state[key].dtype
                    check_stored(state[key], other_state[key], scales.get(key, g.abs()), key)
                for key in state.keys() & {*REACH_STATE, "step"}:
                    tolerance = {torch.float64: 1e-14, BF16: 1e-4}.get(dtype, 2e-6)  # v in bfloat16 goes into means
                    torch.testing.assert_close(state[key], other_state[key], rtol=tolerance, atol=0)
                check_stored(p, q, q.detach().abs() + reach, "param")
                q.data.copy_(p.detach())
                for key, x in state.items():
                    other_state[key].copy_(x)
    assert calls == [4] * 6


@every_variant
def test_fifty_steps_in_float32(options: dict[str, Any]) -> None:
    """As close to the unfused path as its two variants are to each other: a unit in the last place a step."""
    params = parameters(((6, 5), (2000,), (3, 2, 4), (), (1,)))
    others, grads = twins(params), gradients(params, 50)
    feed(Falling(params, 0.01, **options, fused=True), params, grads)
    feed(Falling(others, 0.01, **options, fused=False, foreach=False), others, grads)
    assert all(relative_error(p, q) <= 50 * FLOAT_UNIT for p, q in zip(params, others, strict=True))


@every_variant
@pytest.mark.parametrize("first", [0, 1, 8], ids=lambda i: f"from-step-{i + 1}")
@pytest.mark.parametrize("poison", [math.nan, -math.inf], ids=str)
def test_poison_does_what_it_does_elsewhere(options: dict[str, Any], poison: float, first: int) -> None:
    """One coordinate is lost, the mean lives on, other tensors hear nothing: as on the single path, and so is z."""
    params = parameters([(40, 30), (30,)])
    others, grads = twins(params), gradients(params, 12)
    for row in grads[first : first + 3]:
        row[0][3, 4] = poison
    optimizer = Falling(params, 0.01, **options, fused=True)
    other = Falling(others, 0.01, **options, fused=False, foreach=False)
    with kernel_calls() as calls:
        feed(optimizer, params, grads)
    feed(other, others, grads)
    assert calls == [2] * 12
    assert params[0].isfinite().sum() == params[0].numel() - 1
    torch.testing.assert_close(params, others, rtol=1e-5, atol=1e-6, equal_nan=True)
    for p, q in zip(params, others, strict=True):
        for key, x in optimizer.state[p].items():
            torch.testing.assert_close(x, other.state[q][key], rtol=1e-5, atol=1e-6, equal_nan=True)
    with optimizer.straightened(), other.straightened():
        torch.testing.assert_close(params, others, rtol=1e-5, atol=1e-6, equal_nan=True)


@every_variant
@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
def test_gradients_are_never_written_to(options: dict[str, Any], maximize: bool) -> None:
    """Nor replaced, in whatever layout; and to maximize is to minimize their negatives."""
    params = parameters(((5, 4), (7,)))
    others, grads = twins(params), gradients(params, 3)
    optimizer = Falling(params, 0.01, **options, fused=True, maximize=maximize)
    for row in grads:
        row = [row[0].t().contiguous().t(), row[1]]
        for param, grad in zip(params, row, strict=True):
            param.grad = grad
        before = [bits(g) for g in row]
        optimizer.step()
        assert [bits(g) for g in row] == before
        assert all(p.grad is g for p, g in zip(params, row, strict=True))
    sign = -1 if maximize else 1
    feed(Falling(others, 0.01, **options, fused=True), others, [[sign * g for g in row] for row in grads])
    assert equal(params, others)


# How the work is split ----------------------------------------------------------------------------------------------

SIZES = [
    0,
    1,
    2,
    15,
    16,
    17,
    31,
    BLOCK - 1,
    BLOCK,
    BLOCK + 1,
    2 * BLOCK - 1,
    CHUNK - 1,
    CHUNK,
    CHUNK + 1,
    2 * CHUNK + 3,
    4 * CHUNK + 1,  # in longer chunks
]


@every_variant
def test_sizes_around_blocks_and_chunks(options: dict[str, Any]) -> None:
    """Every element is updated exactly once, and the mean is over the whole tensor."""
    params = parameters([(n,) for n in SIZES])
    others, grads = [torch.nn.Parameter(p.detach().double()) for p in params], gradients(params, 2)
    optimizer = Falling(params, 0.01, **options, fused=True)
    with kernel_calls() as calls:
        feed(optimizer, params, grads)
    assert calls == [len(SIZES)] * 2
    feed(Falling(others, 0.01, **options, fused=False), others, [[g.double() for g in row] for row in grads])
    for p, q in zip(params, others, strict=True):
        assert relative_error(p, q) <= 4 * FLOAT_UNIT
        state = optimizer.state[p]
        if "denom_mean" in state and p.numel():
            h = (state["exp_avg_sq"].double() / (1 - 0.95**2)).sqrt() + 1e-8
            assert relative_error(state["denom_mean"], h.mean()) <= 1e-6


@every_storage
def test_a_tensor_does_not_depend_on_its_neighbours(dtype: torch.dtype, storage: dict[str, Any]) -> None:
    """Many small tensors together are each of them alone, where its number among the parameters is the same."""
    params = parameters([(i % 7, 3) for i in range(300)], dtype)
    grads, picked = gradients(params, 4), 299
    start = twins(params)
    feed(Falling(params, 0.01, **storage, hidden=True, fused=True), params, grads)
    for i in (0, 1, 150, picked):
        alone = twins(start)
        optimizer = Falling(alone, 0.01, **storage, hidden=True, fused=True)
        feed(optimizer, [alone[i]], [[row[i]] for row in grads])
        assert bits(alone[i]) == bits(params[i])


@pytest.mark.parametrize("order", ["one takes all", "the last finds nothing", "in turns"])
def test_who_takes_which_chunk_is_of_no_matter(order: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime that calls the workers as it likes is asked for torch's number of threads, and bits are the same."""
    asked = []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    def parallel(work: int, data: int, threads: int, _: int) -> None:
        asked.append(threads)
        worker = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(work)
        for _ in range({"one takes all": 1, "the last finds nothing": 2, "in turns": threads}[order]):
            worker(data)

    params = parameters([(3 * CHUNK + 5,), (10,)])
    others, grads = twins(params), gradients(params, 2)
    feed(Falling(others, 0.01, state_dtype=BF16, hidden=True, fused=True), others, grads)
    monkeypatch.setattr(cpu, "torch_threads", lambda: ctypes.cast(parallel, ctypes.c_void_p))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    feed(Falling(params, 0.01, state_dtype=BF16, hidden=True, fused=True), params, grads)
    assert asked == [5, 5]
    assert equal(params, others)


def test_torch_has_threads_for_the_kernel() -> None:
    """Where torch was built with OpenMP, the kernel finds the pool that torch computes with."""
    if "OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("torch without OpenMP")
    assert cpu.torch_threads()


def largest_allocation(optimizer: HATAM) -> int:
    """The most bytes that any one operation of a step leaves allocated when it returns."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True, acc_events=True) as profile:
        optimizer.step()
    return max((event.self_cpu_memory_usage for event in profile.events()), default=0)


@pytest.mark.parametrize("hidden", [True, False])
@every_storage
def test_no_temporary_grows_with_the_parameters(hidden: bool, dtype: torch.dtype, storage: dict[str, Any]) -> None:
    """The unfused path, measured alike, has one of the size of the parameter."""
    (param,) = parameters([(100_000,)], dtype)
    found = {}
    for fused in (True, False):
        optimizer = Falling([param], 0.01, hidden=hidden, **storage, fused=fused)
        feed(optimizer, [param], gradients([param], 1))
        found[fused] = largest_allocation(optimizer)
    assert found[True] < 4096
    assert found[False] >= param.numel() * param.element_size()
