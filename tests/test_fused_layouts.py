"""What the CPU kernel walks as one line of memory, what it leaves to another path, and that both give the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from conftest import (
    Reaching,
    bits,
    equal,
    every_variant,
    feed,
    generator,
    gradients,
    kernel_calls,
    parameters,
    relative_error,
    twins,
)
from torch import Tensor

Pair = tuple[list[Tensor], list[Tensor]]


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=dtype, generator=generator(seed))


def unaligned(x: Tensor, by: int = 1) -> Tensor:
    """The same numbers some elements off the start of an allocation."""
    return torch.empty(x.numel() + by, dtype=x.dtype)[by:].view(x.shape).copy_(x)


def strided_slices() -> Pair:
    """Columns of one matrix, interleaved in memory, with what lies between them."""
    base, grads = normal(20, 9), normal(20, 6, seed=1)
    return [base[:, 0:6:2], base[:, 1:6:2]], [grads[:, :3], grads[:, 3:]]


# Parameters and gradients, and how many of them the kernel takes.
LAYOUTS: dict[str, tuple[Callable[[], Pair], int]] = {
    "transposed-gradient": (lambda: ([normal(40, 30)], [normal(30, 40).t()]), 1),
    "transposed-parameter": (lambda: ([normal(40, 30).t()], [normal(30, 40)]), 1),
    "both-transposed": (lambda: ([normal(40, 30).t()], [normal(40, 30, seed=1).t()]), 1),
    "channels-last": (
        lambda: ([normal(4, 3, 5, 5).to(memory_format=torch.channels_last)], [normal(4, 3, 5, 5, seed=1)]),
        1,
    ),
    "channels-last-gradient": (
        lambda: ([normal(4, 3, 5, 5)], [normal(4, 3, 5, 5, seed=1).to(memory_format=torch.channels_last)]),
        1,
    ),
    "permuted": (lambda: ([normal(4, 3, 5).permute(2, 0, 1)], [normal(4, 5, 3).permute(1, 0, 2)]), 1),
    "size-1-dimensions": (lambda: ([normal(6, 2)[:, :1].t().contiguous()], [normal(1, 6, seed=1)]), 1),
    "strided-gradient": (lambda: ([normal(40, 30)], [normal(40, 60)[:, ::2]]), 1),
    "expanded-gradient": (
        lambda: ([normal(40, 30), normal(7)], [normal(40, 1).expand(40, 30), normal(1).expand(7)]),
        2,
    ),
    "gradient-of-a-sum": (lambda: ([normal(5, 4)], [torch.ones(()).expand(5, 4)]), 1),
    "negated-by-a-bit": (lambda: ([normal(50)], [torch._neg_view(normal(50, seed=1))]), 1),
    "negated-parameter": (lambda: ([torch._neg_view(normal(50))], [normal(50, seed=1)]), 0),
    "zero-by-a-key": (lambda: ([normal(50)], [torch._efficientzerotensor(50)]), 1),
    "unaligned": (lambda: ([unaligned(normal(1030))], [unaligned(normal(1030, seed=1), 3)]), 1),
    "complex": (lambda: ([normal(9, 4, dtype=torch.complex64)], [normal(9, 4, dtype=torch.complex64, seed=1)]), 1),
    "complex-transposed": (
        lambda: ([normal(9, 4, dtype=torch.complex64).t()], [normal(4, 9, dtype=torch.complex64, seed=1)]),
        1,
    ),
    "strided-slices": (strided_slices, 0),
    "strided-and-dense": (lambda: ([normal(40)[::2], normal(7)], [normal(20, seed=1), normal(7, seed=2)]), 1),
    "overlapping": (lambda: ((lambda x: [x[:30], x[10:]])(normal(40)), [normal(30, seed=1), normal(30, seed=2)]), 0),
    "one-inside-another": (lambda: ((lambda x: [x, x[9:12]])(normal(40)), [normal(40), normal(3, seed=2)]), 0),
    "side-by-side": (lambda: ((lambda x: [x[20:], x[:20]])(normal(40)), [normal(20, seed=1), normal(20, seed=2)]), 2),
    "strided-over-dense": (lambda: ((lambda x: [x[::2], x[10:20]])(normal(40)), [normal(20), normal(10, seed=1)]), 0),
    "two-dtypes-over-one-memory": (
        lambda: ((lambda x: [x, x.view(torch.float64)])(normal(8).double().float()), [normal(8), normal(4).double()]),
        0,
    ),
}


def clone(x: Tensor) -> Tensor:
    """A gradient of the same layout, strides of 0 included."""
    return x if 0 in x.stride() or x.is_neg() or x._is_zerotensor() else x.clone(memory_format=torch.preserve_format)


def trained(make: Callable[[], Pair], options: dict[str, Any]) -> tuple[list[Tensor], list[bytes], list[int]]:
    """Where five steps lead, the whole memory below the parameters, and what the kernel took in each."""
    params, grads = make()
    optimizer = Reaching([p.requires_grad_() for p in params], 0.01, **options)
    with kernel_calls() as calls:
        for _ in range(5):
            for p, g in zip(params, grads, strict=True):
                p.grad = clone(g)
            optimizer.step()
    values = [torch.view_as_real(p.detach()) if p.is_complex() else p.detach() for p in params]
    return values, [bytes(p.untyped_storage().tolist()) for p in params], calls


@every_variant
@pytest.mark.parametrize(("make", "taken"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layout(make: Callable[[], Pair], taken: int, options: dict[str, Any]) -> None:
    """Where parameters share memory the order counts: they take the single path, to the last bit."""
    values, memory, calls = trained(make, {**options, "fused": True})
    others, other_memory, none = trained(make, {**options, "fused": False, "foreach": False})
    assert none == []
    assert sum(calls) == 5 * taken
    assert all(relative_error(x, y) <= 3e-6 for x, y in zip(values, others, strict=True))
    if not taken:
        assert memory == other_memory


def test_nothing_is_written_beside_a_tensor() -> None:
    """Gaps between slices and the ends of an allocation stay what they were."""
    for make in (lambda: normal(5000)[7:4999], lambda: normal(100, 50)[10:90], lambda: normal(100, 50)[:, 3:40]):
        p = make().requires_grad_()
        before, storage = make(), torch.empty(0).set_(p.detach().untyped_storage())
        mask = torch.ones(5000, dtype=torch.bool)
        mask.as_strided(p.shape, p.stride(), p.storage_offset()).fill_(False)
        optimizer = Reaching([p], 0.01, fused=True)
        for _ in range(3):
            p.grad = torch.ones_like(p)
            optimizer.step()
        assert not torch.equal(p.detach(), before)
        assert torch.equal(storage[mask], torch.empty(0).set_(before.untyped_storage())[mask])


@pytest.mark.parametrize("fused", [None, True])
def test_tensor_subclasses_go_another_way(fused: bool | None) -> None:
    """Their memory is nobody's business here; a plain tensor beside them is still the kernel's."""

    class Marked(torch.nn.Parameter):
        pass

    plain, base = parameters([(9,), (9,)])
    params = [plain, Marked(base.detach().clone())]
    others, grads = [plain.detach().clone().requires_grad_(), base], gradients(params, 4)
    with kernel_calls() as calls:
        feed(Reaching(params, 0.01, fused=fused), params, grads)
    assert calls == [1] * 4
    assert type(params[1]) is Marked
    feed(Reaching(others, 0.01, fused=False), others, grads)
    assert all(relative_error(p, q) <= 2e-6 for p, q in zip(params, others, strict=True))


@every_variant
def test_several_dtypes_in_one_group(options: dict[str, Any]) -> None:
    """One call of the kernel for each, none for float16; a parameter without a gradient between them is left alone."""
    dtypes = (torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.float32, torch.float32)
    params = [p for i, dtype in enumerate(dtypes) for p in parameters([(20, 3)], dtype, seed=i)]
    others = twins(params)
    optimizer = Reaching(params, 0.01, **options, fused=True)
    other = Reaching(others, 0.01, **options, fused=False)
    fed = [i for i in range(6) if i != 4]
    start = bits(params[4])
    rows = [[row[i] for i in fed] for row in gradients(params, 5)]
    with kernel_calls() as calls:
        feed(optimizer, [params[i] for i in fed], rows)
    feed(other, [others[i] for i in fed], rows)
    assert sorted(calls) == sorted([2, 1, 1] * 5)
    assert bits(params[4]) == start
    assert params[4] not in optimizer.state
    tolerances = {torch.float32: 2e-6, torch.float64: 1e-14, torch.bfloat16: 2e-2, torch.float16: 0}
    for p, q in zip(params, others, strict=True):
        assert relative_error(p, q) <= tolerances[p.dtype]


def test_state_columns_of_several_dtypes() -> None:
    """A group whose parameters have state in different dtypes, as from merged checkpoints, is cut into batches."""
    params = parameters([(40,)] * 4)
    others, grads = twins(params), gradients(params, 6)
    optimizer, other = Reaching(params, 0.01, fused=True), Reaching(others, 0.01, fused=False)
    feed(optimizer, params, grads[:2])
    feed(other, others, grads[:2])
    for o, ps in ((optimizer, params), (other, others)):
        o.state[ps[1]]["exp_avg"] = o.state[ps[1]]["exp_avg"].bfloat16()
        o.state[ps[2]]["exp_avg_sq"] = o.state[ps[2]]["exp_avg_sq"].double()  # which no loop is made for
    with kernel_calls() as calls:
        feed(optimizer, params, grads[2:])
    feed(other, others, grads[2:])
    assert calls == [2, 1] * 4
    assert optimizer.state[params[1]]["exp_avg"].dtype == torch.bfloat16
    assert optimizer.state[params[2]]["exp_avg_sq"].dtype == torch.float64
    assert all(relative_error(p, q) <= 1e-4 for p, q in zip(params, others, strict=True))


@pytest.mark.parametrize(
    "change", [lambda x: x.repeat(3, 1), lambda x: x[:4], lambda x: x.t()], ids=["more", "less", "t"]
)
@pytest.mark.parametrize("grad_stays", [False, True])
def test_other_data_of_another_shape_are_refused(change: Callable[[Tensor], Tensor], grad_stays: bool) -> None:
    """A kernel would read and write beside the state, or with another place's; AdamW refuses it too."""
    p = torch.nn.Parameter(torch.ones(10, 8))
    optimizer = Reaching([p])
    p.grad = torch.ones(10, 8)
    optimizer.step()
    before = {key: x.clone() for key, x in optimizer.state[p].items()}
    p.data = change(p.data)
    if not grad_stays:
        p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match=r"shape \(10, 8\): the parameter was given other data"):
        optimizer.step()
    assert all(torch.equal(x, before[key]) for key, x in optimizer.state[p].items())
    del optimizer.state[p]
    p.grad = torch.ones_like(p)
    optimizer.step()


def test_sparse_gradients_are_refused_before_anything_moves() -> None:
    params = parameters(((3,), (4, 2)))
    optimizer = Reaching(params, 0.01, fused=True)
    feed(optimizer, params, gradients(params, 2))
    before, state = [bits(p) for p in params], repr(optimizer.state_dict())
    params[1].grad = torch.ones(4, 2).to_sparse()
    with pytest.raises(RuntimeError, match="number 1 of group 0 is sparse"):
        optimizer.step()
    assert [bits(p) for p in params] == before
    assert repr(optimizer.state_dict()) == state


@pytest.mark.parametrize("maximize", [False, True], ids=["minimize", "maximize"])
@pytest.mark.parametrize("scale", [None, 8.0], ids=["unscaled", "loss-scale"])
@pytest.mark.parametrize(
    "name",
    [
        *("transposed-gradient", "transposed-parameter", "complex", "strided-slices", "negated-by-a-bit"),
        "negated-parameter",
    ],
)
def test_gamma_0_in_any_layout(name: str, scale: float | None, maximize: bool) -> None:
    """torch's fused AdamW walks raw memory whatever lies there; what it would get wrong it is not given."""
    results = []
    for fused in (True, False):
        params, grads = LAYOUTS[name][0]()
        optimizer = Reaching([p.requires_grad_() for p in params], 0.01, gamma=0.0, fused=fused, maximize=maximize)
        if scale is not None and fused:
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(scale), torch.tensor(0.0)
        for _ in range(3):
            for p, g in zip(params, grads, strict=True):
                p.grad = g * scale if scale is not None and fused else clone(g)
            optimizer.step()
        results.append([torch.view_as_real(p.detach()) if p.is_complex() else p.detach() for p in params])
    assert all(relative_error(x, y) <= 2e-6 for x, y in zip(*results, strict=True))


def test_strides_that_change_at_one_address() -> None:
    """Of a parameter beside one that has never been contiguous; its moments stay as they lie."""
    results = []
    for fused in (True, False):
        params = [normal(4, 3, 5, 5).to(memory_format=torch.channels_last), normal(4, 4)]
        optimizer = Reaching([p.requires_grad_() for p in params], 0.01, fused=fused)
        for i in range(5):
            if i == 2:
                params[1].data = params[1].data.t()
            for p in params:
                p.grad = normal(*p.shape, seed=i)
            optimizer.step()
        results.append([p.detach() for p in params])
    assert all(relative_error(x, y) <= 2e-6 for x, y in zip(*results, strict=True))


def test_zero_size_and_0_dim_beside_others() -> None:
    """Nothing to do for the one, a vector of one for the other."""
    params = parameters(((0,), (3,), (), (2, 0), (1, 1)))
    others, grads = twins(params), gradients(params, 4)
    with kernel_calls() as calls:
        feed(Reaching(params, 0.01, fused=True), params, grads)
    assert calls == [5] * 4
    picked = [1, 2, 4]
    feed(
        Reaching([others[i] for i in picked], 0.01, fused=True),
        [others[i] for i in picked],
        [[r[i] for i in picked] for r in grads],
    )
    assert equal([params[i] for i in picked], [others[i] for i in picked])
