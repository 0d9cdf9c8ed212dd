"""The compiled CPU kernel against the paths that it replaces, for every combination of types that it takes."""

from __future__ import annotations

import io
import itertools
from typing import Any

import pytest
import torch
from conftest import MODULATORS, bits, cosine, equal, feed, gradients, parameters, relative_error, twins

from hatam import HATAM
from hatam.fused import cpu

BF16 = torch.bfloat16
SHAPES = ((300, 70), (1024,), (1025,), (17,), (), (0,), (33000,))
FORMS: dict[str, dict[str, Any]] = {
    "decoupled": {"form": "decoupled"},
    "own": {"form": "decoupled", "beta_c": 0.7},
    "raw": {"form": "raw"},
    "published": {"form": "published"},
}
# The parameters' dtype, the options, and the largest difference to the unfused path in units of the parameters' dtype.
# float32 differs by its rounding; what is rounded at random now and then by a unit of bfloat16.
STORAGE: dict[str, tuple[torch.dtype, dict[str, Any], float]] = {
    "float64": (torch.float64, {}, 1e-14),
    "float32": (torch.float32, {}, 2e-6),
    "float32, m in bfloat16": (torch.float32, {"state_dtype": BF16}, 5e-4),
    "bfloat16": (BF16, {}, 5e-2),
    "bfloat16 at random": (BF16, {"bf16_stochastic_round": True}, 2e-2),
    "bfloat16, state in float32": (BF16, {"state_dtype": torch.float32}, 2e-2),
    "bfloat16 at random, state in float32": (
        BF16,
        {"state_dtype": torch.float32, "bf16_stochastic_round": True},
        2e-2,
    ),
    "bfloat16, v in float32": (BF16, {"state_dtype": BF16, "bf16_stochastic_round": True}, 2e-2),
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tensors each call of the kernel took."""
    taken: list[int] = []
    step = cpu.step

    def counted(params: list[torch.Tensor], *rest: Any) -> None:
        taken.append(len(params))
        step(params, *rest)

    monkeypatch.setattr(cpu, "step", counted)
    return taken


@pytest.mark.parametrize("modulator", MODULATORS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("storage", STORAGE)
def test_agrees_with_the_unfused_path(calls: list[int], storage: str, form: str, modulator: str) -> None:
    dtype, options, tolerance = STORAGE[storage]
    options = {**options, **FORMS[form], "modulator": modulator}
    params = parameters(SHAPES, dtype)
    others, grads, lrs = twins(params), gradients(params, 20), cosine(20, 0.01, 3)
    feed(HATAM(params, 0.01, fused=True, **options), params, grads, lrs)
    assert calls == [len(params)] * 20
    feed(HATAM(others, 0.01, fused=False, foreach=False, **options), others, grads, lrs)
    assert max(relative_error(x, y) for x, y in zip(params, others, strict=True)) <= tolerance


@pytest.mark.parametrize("form", FORMS)
def test_same_bits_for_any_number_of_threads(form: str) -> None:
    before = torch.get_num_threads()
    runs = []
    start = parameters(((200000,), (70,)))
    grads = gradients(start, 5)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            params = twins(start)
            optimizer = HATAM(params, 0.01, fused=True, state_dtype=BF16, **FORMS[form])
            feed(optimizer, params, grads)
            state = [x for p in params for x in optimizer.state[p].values()]
            runs.append([bits(x) for x in (*params, *state)])
    finally:
        torch.set_num_threads(before)
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize("layout", ["transposed gradient", "transposed parameter", "slice", "shared", "complex"])
def test_any_layout_gives_the_same(layout: str) -> None:
    """What the kernel cannot walk as one line takes another path."""

    def prepared() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        rng = torch.Generator().manual_seed(3)
        base, grad = torch.randn(40, 30, generator=rng), torch.randn(40, 30, generator=rng)
        if layout == "transposed gradient":
            return [base], [grad.t().contiguous().t()]
        if layout == "transposed parameter":
            return [base.t()], [grad.t().contiguous()]
        if layout == "slice":
            return [base[:, ::2]], [grad[:, ::2]]
        if layout == "shared":
            return [base[:30], base[10:]], [grad[:30], grad[10:]]
        return [torch.complex(base, grad)], [torch.complex(grad, base)]

    results = []
    for fused in (True, False):
        params, grads = prepared()
        optimizer = HATAM([p.requires_grad_() for p in params], 0.01, fused=fused, foreach=None if fused else False)
        for _ in range(5):
            for p, g in zip(params, grads, strict=True):
                p.grad = g.clone(memory_format=torch.preserve_format)
            optimizer.step()
        results.append([torch.view_as_real(p.detach()) if p.is_complex() else p.detach() for p in params])
    assert max(relative_error(x, y) for x, y in zip(*results, strict=True)) <= 2e-6


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("state_dtype", [None, BF16], ids=["float32", "bfloat16"])
def test_a_skipped_step_moves_nothing(form: str, state_dtype: torch.dtype | None) -> None:
    """A GradScaler finds an infinite gradient; the step before it, scaled, is that without a scale."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    params = parameters()
    others = twins(params)
    optimizer = HATAM(params, 0.01, fused=True, state_dtype=state_dtype, **FORMS[form])
    plain = HATAM(others, 0.01, fused=True, state_dtype=state_dtype, **FORMS[form])
    for p, q in zip(params, others, strict=True):
        p.grad, q.grad = torch.full_like(p, 1024.0), torch.ones_like(q)
    scaler.scale(torch.ones(()))
    scaler.step(optimizer)
    scaler.update()
    plain.step()
    assert equal(params, others)
    optimizer.param_groups[0]["lr"] = 1.0
    params[0].grad.fill_(torch.inf)
    tensors = [*params, *itertools.chain.from_iterable(s.values() for s in optimizer.state.values())]
    before = [bits(x) for x in tensors]
    scaler.step(optimizer)
    assert [bits(x) for x in tensors] == before
    assert optimizer.param_groups[0]["lr_peak"] == 0.01


def test_a_stale_graph_is_noticed() -> None:
    """The kernel writes behind torch's back, and tells it."""
    (p,) = parameters([(5,)])
    loss = p.square().sum()
    p.grad = torch.ones_like(p)
    HATAM([p], 0.01, fused=True).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("fault", ["missing", "corrupt"])
def test_without_a_kernel(fault: str, monkeypatch: Any, tmp_path: Any, caplog: Any) -> None:
    """fused=None falls back with one line in the log; fused=True says how to get it."""
    library = tmp_path / "_cpu.so"
    if fault == "corrupt":
        library.write_bytes(b"not a library")
    monkeypatch.setattr(cpu, "LIBRARY", library)
    from hatam import fused

    cpu.load.cache_clear()
    fused.at_hand.cache_clear()
    try:
        params = parameters()
        optimizer = HATAM(params, 0.01)
        feed(optimizer, params, gradients(params, 3))
        assert [record.name for record in caplog.records] == ["hatam"]
        with pytest.raises(RuntimeError, match=r"fused=True: there is no fused CPU kernel.*compiler"):
            HATAM(params, 0.01, fused=True)
    finally:
        monkeypatch.undo()
        cpu.load.cache_clear()
        fused.at_hand.cache_clear()


@pytest.mark.parametrize(
    ("options", "size"),
    [({}, 8), ({"state_dtype": BF16}, 6), ({"form": "raw"}, 12), ({"form": "published"}, 12)],
    ids=["decoupled", "m in bfloat16", "raw", "published"],
)
def test_bytes_of_state(options: dict[str, Any], size: int) -> None:
    (p,) = parameters([(1000,)])
    optimizer = HATAM([p], 0.01, **options)
    feed(optimizer, [p], gradients([p], 2))
    held = sum(x.numel() * x.element_size() for x in optimizer.state[p].values() if x.dim())
    assert held == size * p.numel()


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "unfused"])
@pytest.mark.parametrize("state_dtype", [None, torch.float32, BF16, "8bit"], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, BF16], ids=str)
def test_resuming_keeps_dtypes_and_bits(dtype: torch.dtype, state_dtype: Any, fused: bool) -> None:
    params = parameters(((64, 64), (30,)), dtype)
    grads = gradients(params, 10)
    options = {"state_dtype": state_dtype, "bf16_stochastic_round": True, "fused": fused}
    optimizer = HATAM(params, 0.01, **options)
    feed(optimizer, params, grads[:5])
    others = twins(params)
    other = HATAM(others, 0.5, **options)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=state_dtype != "8bit"))
    for p, q in zip(params, others, strict=True):
        types = [(type(x), x.dtype) for x in optimizer.state[p].values()]
        assert [(type(x), x.dtype) for x in other.state[q].values()] == types
    feed(optimizer, params, grads[5:])
    feed(other, others, grads[5:])
    assert equal(params, others)


def test_rounding_at_random_has_the_right_mean() -> None:
    """A bfloat16 parameter near 1, whose steps are far below half a unit, moves as far as it should on average."""
    moved = {}
    for at_random in (False, True):
        p = torch.nn.Parameter(torch.ones(20000, dtype=BF16))
        optimizer = HATAM([p], 1e-4, weight_decay=0, gamma=1e-9, bf16_stochastic_round=at_random, seed=5)
        feed(optimizer, [p], [[torch.ones_like(p)]] * 100)
        moved[at_random] = 1 - p.detach().double().mean().item()
    assert moved[False] == 0
    assert abs(moved[True] - 0.01) <= 5e-4  # 100 steps of lr; the standard error of the mean is 4e-5 · sqrt(5)
