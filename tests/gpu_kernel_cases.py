"""The GPU kernel in Triton's interpreter, on CPU tensors: test_gpu_kernel.py runs this file in a process of its own."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    VARIANTS,
    Reaching,
    bits,
    cosine,
    equal,
    every_variant,
    feed,
    gradients,
    oracles,
    parameters,
    relative_error,
    twins,
)
from test_reference import compare
from torch import Tensor

from hatam import HATAM, fused, options
from hatam.fused import cpu, gpu
from hatam.fused.batches import Batch, Columns
from hatam.storage import REACH_STATE
from hatam.update import Options

# The interpreter of Triton 3.6 makes numpy warn of a loop's bounds.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")

BF16 = torch.bfloat16
SHAPES = ((gpu.CHUNK + 1,), (0,))
UNIFORM, RELATIVE = VARIANTS["uniform"], VARIANTS["relative"]
# The kernel has no branch in which storage and modulator meet, so that each storage needs one of them.
STORAGE: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float64": (torch.float64, UNIFORM),
    "float64, relative": (torch.float64, RELATIVE),
    "float32": (torch.float32, UNIFORM),
    "float32, m in bfloat16": (torch.float32, {"state_dtype": BF16, **RELATIVE}),
    "bfloat16": (BF16, RELATIVE),
    "bfloat16 at random": (BF16, {"bf16_stochastic_round": True, **UNIFORM}),
    "bfloat16, state in float32": (BF16, {"state_dtype": torch.float32, **UNIFORM}),
    "bfloat16 at random, state in float32": (
        BF16,
        {"state_dtype": torch.float32, "bf16_stochastic_round": True, **RELATIVE},
    ),
    "bfloat16, v in float32": (BF16, {"state_dtype": BF16, "bf16_stochastic_round": True, **RELATIVE}),
}


@pytest.fixture(autouse=True)
def on_cpu_tensors(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """CPU tensors go to the GPU's kernel."""
    monkeypatch.setitem(fused.KERNELS, "cpu", gpu)
    fused.is_available.cache_clear()
    yield
    fused.is_available.cache_clear()


@pytest.fixture(autouse=True)
def scratch_that_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """New memory holds numbers of which the interpreter complains where they are narrowed, and not by chance alone."""
    empty = torch.empty

    def filled(*args: Any, **kwargs: Any) -> Tensor:
        x = empty(*args, **kwargs)
        return x.fill_(1e300) if x.dtype == torch.float64 else x

    monkeypatch.setattr(torch, "empty", filled)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tensors each call of the kernel took."""
    counts: list[int] = []
    step = gpu.step

    def counted(batch: Batch, o: Options) -> None:
        counts.append(len(batch.params))
        step(batch, o)

    monkeypatch.setattr(gpu, "step", counted)
    return counts


def state_bits(optimizer: HATAM) -> list[tuple[str, bytes]]:
    """All that a step may move: parameters, state and the largest lr."""
    state = [(key, bits(x)) for one in optimizer.state.values() for key, x in one.items()]
    groups = optimizer.param_groups
    params = [("param", bits(p)) for g in groups for p in g["params"]]
    return state + params + [("lr_peak", repr(float(g["lr_peak"])).encode()) for g in groups]


def run(params: list[torch.nn.Parameter], kernel: Any, steps: int, **options: Any) -> HATAM:
    """Some steps on one of the kernels."""
    fused.KERNELS["cpu"] = kernel  # put back by the fixture
    optimizer = Reaching(params, 0.01, fused=True, **options)
    feed(optimizer, params, gradients(params, steps), [0.01, 0.008, 0.006, 0.004, 0.002, 0.0][:steps])
    return optimizer


def close(x: Tensor, y: Tensor) -> bool:
    """To a rounding of either; in bfloat16, where a rounding may turn out one unit apart, but for 1 element in 100."""
    if x.dtype == BF16:
        return relative_error(x, y) <= 2**-7 and int((x != y).sum()) <= 1 + x.numel() / 100
    return relative_error(x, y) <= 16 * torch.finfo(x.dtype).eps


# Against the reference and the CPU kernel ---------------------------------------------------------------------------


@every_variant
def test_agrees_with_the_reference(taken: list[int], options: dict[str, Any]) -> None:
    params = parameters(((5, 4), (7,), ()), torch.float64)
    optimizer = HATAM(params, 0.01, fused=True, weight_decay=0.1, **options)
    compare(optimizer, params, oracles(params, optimizer), gradients(params, 9), cosine(9, 0.01, 2))
    assert taken == [3] * 7


@pytest.mark.parametrize("storage", STORAGE)
def test_has_the_bits_of_the_cpu_kernel(taken: list[int], storage: str) -> None:
    """Of step, m and v; the rest is behind a division or a sum."""
    dtype, stored = STORAGE[storage]
    params = parameters(SHAPES, dtype)
    others = twins(params)
    options = {"seed": 2**32 - 5, **stored}
    optimizer, other = run(params, gpu, 4, **options), run(others, cpu, 4, **options)
    assert taken == [len(SHAPES)] * 4
    for p, q in zip(params, others, strict=True):
        assert close(p, q)
        assert optimizer.state[p].keys() == other.state[q].keys()
        for key, x in optimizer.state[p].items():
            y = other.state[q][key]
            assert x.dtype == y.dtype
            exact = key not in REACH_STATE or not y.isfinite().all()
            assert bits(x) == bits(y) if exact else close(x, y), key


def test_many_tensors_of_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than one program of `prepare` has, and sizes around that of a chunk."""
    monkeypatch.setattr(gpu, "LANES", 4)
    shapes = [(3,), (0,), (0,), (3,), (gpu.CHUNK - 1,), (gpu.CHUNK,), (2, gpu.CHUNK + 1), ()]
    params = parameters(shapes)
    others = twins(params)
    run(params, gpu, 3)
    run(others, cpu, 3)
    assert all(close(p, q) for p, q in zip(params, others, strict=True))


def test_tensors_without_a_reach(taken: list[int]) -> None:
    """Beside others, and with state in few bits, where torch's AdamW does not serve."""
    params = parameters(((20,), (4, 5)), BF16)
    others = twins(params)
    options = {"hidden": None, "state_dtype": torch.float32}
    optimizer, other = run(params, gpu, 3, **options), run(others, cpu, 3, **options)
    assert taken == [1, 1] * 3
    assert "reach" not in optimizer.state[params[0]]
    assert all(close(p, q) for p, q in zip(params, others, strict=True))
    assert all(
        bits(optimizer.state[p]["exp_avg"]) == bits(other.state[q]["exp_avg"])
        for p, q in zip(params, others, strict=True)
    )


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@every_variant
def test_a_bad_coordinate_harms_itself_alone(options: dict[str, Any]) -> None:
    """The mean stays the last good one."""
    params = parameters(((9,),))
    others = twins(params)
    grads = gradients(params, 4)
    grads[2][0][3] = math.inf
    for ps, kernel in ((params, gpu), (others, cpu)):
        fused.KERNELS["cpu"] = kernel
        feed(Reaching(ps, 0.01, fused=True, **options), ps, grads)
    (p,), (q,) = params, others
    assert p.isfinite().sum() == 8
    assert torch.equal(p.isfinite(), q.isfinite())
    assert close(p[q.isfinite()], q[q.isfinite()])


@every_variant
def test_maximize_and_odd_options(options: dict[str, Any]) -> None:
    """β1 = 0, and an eps below what the CPU kernel takes."""
    params = parameters(((20,),))
    others = twins(params)
    options = {"betas": (0.0, 0.9), "eps": 1e-20, "maximize": True, **options}
    run(params, gpu, 4, **options)
    feed(Reaching(others, 0.01, fused=False, **options), others, gradients(others, 4), [0.01, 0.008, 0.006, 0.004])
    assert close(params[0], others[0])


# Hosts --------------------------------------------------------------------------------------------------------------


def test_tensor_lr() -> None:
    params = parameters(((20,),))
    others = twins(params)
    grads, lrs = gradients(params, 4), cosine(4, 0.01, 2)
    feed(Reaching(params, torch.tensor(0.01, dtype=torch.float64), fused=True, **RELATIVE), params, grads, lrs)
    feed(Reaching(others, 0.01, fused=True, **RELATIVE), others, grads, lrs)
    assert equal(params, others)


@pytest.mark.parametrize(
    ("lr", "options"), [(0.01, RELATIVE), (torch.tensor(0.01), UNIFORM)], ids=["float, relative", "tensor, uniform"]
)
def test_a_step_that_gradscaler_skips_moves_nothing(lr: Any, options: dict[str, Any]) -> None:
    """Nor the largest lr, though the skipped steps have a larger one. Gradients are read, never written.

    With lr a tensor, the largest is one tensor from the first step on: a CUDA graph goes on writing to that one.
    """
    params = parameters(((gpu.CHUNK + 3,),))
    others = twins(params)
    optimizer = Reaching(params, lr, fused=True, **options)
    plain = Reaching(others, 0.01, fused=True, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for i, row in enumerate(gradients(params, 5)):
        skip = i in (0, 3)
        optimizer.param_groups[0]["lr"] = lr * (10 if skip else 1)
        scale = scaler.scale(torch.ones(())).item()
        for p, q, g in zip(params, others, row, strict=True):
            p.grad, q.grad = g * scale, g.clone()
        if skip:
            params[0].grad[2] = math.inf
        before, given = state_bits(optimizer), [bits(p.grad) for p in params]
        peak = optimizer.param_groups[0]["lr_peak"]
        scaler.step(optimizer)
        scaler.update()
        assert i == 0 or isinstance(lr, float) or optimizer.param_groups[0]["lr_peak"] is peak
        assert [bits(p.grad) for p in params] == given
        if skip and i:
            assert state_bits(optimizer) == before
        elif not skip:
            plain.step()
        assert equal(params, others)
    assert float(optimizer.param_groups[0]["lr_peak"]) == pytest.approx(0.02, rel=1e-6)


def test_a_skipped_step_of_what_the_kernel_does_not_take(taken: list[int]) -> None:
    params = parameters(((4,),)) + parameters(((4,),), torch.float16)
    optimizer = Reaching(params, 0.01, fused=True)
    (first, second) = gradients(params, 2)
    feed(optimizer, params, [first])
    before = state_bits(optimizer)
    optimizer.found_inf, optimizer.grad_scale = torch.ones(1), torch.tensor(2.0)
    feed(optimizer, params, [second])
    assert state_bits(optimizer) == before
    assert taken == [1, 1]


def test_a_stale_graph_is_noticed() -> None:
    (p,) = parameters([(5,)])
    loss = p.square().sum()
    p.grad = torch.ones_like(p)
    Reaching([p], 0.01, fused=True).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# The table ----------------------------------------------------------------------------------------------------------


def test_tables_are_built_again_only_where_addresses_change(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[int] = []
    build = gpu.build
    monkeypatch.setattr(gpu, "build", lambda *table: built.append(1) or build(*table))
    params = parameters()
    optimizer = Reaching(params, 0.01, fused=True)
    kept = gradients(params, 1)[0]
    for p, g in zip(params, kept, strict=True):
        p.grad = g
    optimizer.step()
    optimizer.step()
    assert len(built) == 1
    params[0].grad = params[0].grad.clone()
    optimizer.step()
    assert len(built) == 2


def batch_of(columns: Columns, grads: list[Tensor]) -> Batch:
    """All rows, with gradients that live as long as the test holds them."""
    places = list(range(len(grads)))
    one = Batch({**columns, "grad": grads}, places, places)
    _, one.addresses["grad"] = one.aligned_grads(grads)
    return one


def test_what_is_not_aligned_is_known_to_be() -> None:
    """Only where every address is a multiple of 16 may the kernel read 16 bytes at a time."""
    whole, part = torch.zeros(64), torch.zeros(65)[1:]
    for x, aligned in ((whole, True), (part, False)):
        columns = {"param": [x], "exp_avg": [whole], "exp_avg_sq": [whole], "step": [torch.zeros(())]}
        one = batch_of(columns, [whole])
        one.kernel_cache = gpu.Layout.of(one, options.resolve(HATAM([x]).param_groups[0], 0.01))
        assert gpu.tables(gpu.table_key(one), one.kernel_cache.scratch, x.device).aligned == aligned


def test_the_number_of_launches_is_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three, for 3 tensors and for 300."""
    launched: list[str] = []

    class Counted:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: tuple[int, ...]) -> Any:
            return lambda *args, **kwargs: launched.append(self.name)

    for name in ("prepare", "update", "finish"):
        monkeypatch.setattr(gpu.kernels(), name, Counted(name))
    for count in (3, 300):
        launched.clear()
        params = parameters([(5,)] * count)
        feed(Reaching(params, 0.01, fused=True), params, gradients(params, 1))
        assert launched == ["prepare", "update", "finish"]


def test_the_means_of_a_tensor_of_many_chunks() -> None:
    """More partial sums than `finish` adds at a time, without a tensor that large."""
    k, chunks, beta2 = gpu.kernels(), 2500, 0.9
    step, mean, ratio, travel = torch.tensor(3.0), torch.tensor(math.inf), torch.tensor(0.0), torch.tensor(0.0)
    sizes, spans, roots = torch.rand(3, chunks, dtype=torch.float64)
    row = torch.zeros(1, k.words.COLUMNS.value, dtype=torch.int64)
    for name, x in (("STEP", step), ("DENOM_MEAN", mean), ("RMS_RATIO", ratio), ("PATH_LENGTH", travel)):
        row[0, getattr(k.words, name).value] = x.data_ptr()
    row[0, k.words.NUMEL.value] = numel = chunks * gpu.CHUNK - 5
    k.finish[(1,)](
        row, sizes, spans, roots, None, None, None, None, reach_factor=0.1, lr=0.01, lr_peak=0.02,
        log_beta2=math.log(beta2), eps=1e-8,
        no_gradient_yet=1e-8, growth=1.003,
        STEP_TYPE=k.tl.float32, SCALAR_TYPE=k.tl.float32, CHUNK=gpu.CHUNK, WIDTH=1024,
    )  # fmt: skip
    assert float(mean) == pytest.approx(float(roots.sum()) / numel / math.sqrt(1 - beta2**3) + 1e-8, rel=1e-6)
    assert float(ratio) == pytest.approx(math.sqrt(float(sizes.sum() / spans.sum())), rel=1e-6)
    assert float(travel) == pytest.approx(3 * 0.02 / float(ratio), rel=1e-6)


def test_a_part_of_a_tensor_leaves_its_sums_and_not_its_means() -> None:
    """As the CPU kernel does, whose parts of DTensors tests/test_distributed.py compares with whole tensors."""
    found = []
    for kernel in (cpu, gpu):
        params = parameters(((gpu.CHUNK + 5,), (3,)), torch.float64)
        optimizer = Reaching(params, 0.01, fused=True, modulator="relative")  # which needs all three
        feed(optimizer, params, gradients(params, 3))
        columns: dict[str, list[Tensor]] = {"param": [p.data for p in params]}
        columns |= {key: [optimizer.state[p][key] for p in params] for key in optimizer.state[params[0]]}
        before = [columns[key][i].clone() for key in ("denom_mean", "rms_ratio") for i in (0, 1)]
        sums = torch.zeros(2, 3, dtype=torch.float64)
        columns["shard_sums"] = list(sums.unbind())
        grads = [torch.ones_like(p) for p in params]
        one = batch_of(columns, grads)
        kernel.step(one, options.resolve(optimizer.param_groups[0], 0.01))
        assert equal([columns[key][i] for key in ("denom_mean", "rms_ratio") for i in (0, 1)], before)
        assert bool((sums > 0).all())
        found.append(sums)
    torch.testing.assert_close(*found, rtol=1e-12, atol=0)


def test_the_check_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """benchmarks/gpu_check.py in the interpreter: all that it finds right there."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--interpret", "--out", str(tmp_path)])
    assert importlib.import_module("gpu_check").main() == 0
    assert " checks are right" in capsys.readouterr().out
    record = json.loads((tmp_path / "checks.json").read_text(encoding="utf-8"))
    assert record["device"] == "interpreter"
    assert not record["failures"]
    assert len(record["checks"]) >= 7
