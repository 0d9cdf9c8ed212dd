"""Batches of tensors that a kernel may read and write as flat memory, cached while the tensors stay the same."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from itertools import chain, pairwise
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import Parameter

from ..storage import MOMENTS, REACH_STATE

Columns = dict[str, list[Tensor]]
Addresses: TypeAlias = "array[int]"
PLAIN = {Tensor, Parameter}


class Batch:
    """The input of one kernel call: tensors on one device. A column has one dtype, a row one memory layout."""

    def __init__(self, columns: Columns, param_indices: list[int], places: list[int]) -> None:
        selected = {key: select(column, places) for key, column in columns.items()}
        self.places, self.params, self.param_indices = places, selected["param"], select(param_indices, places)
        self.device, self.contiguous = self.params[0].device.type, all(map(Tensor.is_contiguous, self.params))
        self.dtypes = {key: column[0].dtype for key, column in selected.items()}  # by state key, "param" and "grad"
        self.addresses = {key: addresses(column) for key, column in selected.items() if key != "grad"}
        self.addresses["numel"] = numels(self.params)
        self.kernel_cache: Any = None  # what the kernel keeps between steps

    def aligned_grads(self, grads: list[Tensor]) -> tuple[list[Tensor], Addresses]:
        """The gradients in their parameters' layouts, copied where they differ, and their addresses."""
        selected = select(grads, self.places)
        if self.contiguous and all(map(Tensor.is_contiguous, selected)) and not any(map(Tensor.is_neg, selected)):
            at = addresses(selected)
            if 0 not in at:  # the address of an empty gradient, and of a ZeroTensor, which has no memory
                return selected, at
        selected = [in_layout_of(g, p) for g, p in zip(selected, self.params, strict=True)]
        return selected, addresses(selected)


class BatchPlan(NamedTuple):
    """The batches for kernels, the places of all other tensors, and what tells whether the plan is current."""

    batches: list[Batch]
    rest: list[int]
    key: Any
    addresses: Addresses | None  # of :func:`plan_addresses`; None with tensor subclasses, whose plan is not reused
    scalars: list[Tensor]  # aliases of the 0-dim state, to keep its memory alive: the kernel has its addresses

    def is_current(self, params: list[Tensor], state: Columns, key: Any) -> bool:
        """Whether key and addresses are unchanged. The lists must be those that the plan was made from."""
        return self.key == key and self.addresses is not None and self.addresses == plan_addresses(params, state)


def plan_addresses(params: list[Tensor], state: Columns) -> Addresses:
    """The addresses of all parameters and moments, and of the first parameter's 0-dim state.

    The first one stands for all: code that moves state to other memory by ``.data`` moves all of it.
    """
    scalars = (column[0] for key, column in state.items() if key not in MOMENTS)
    return addresses(chain(params, *(state[key] for key in MOMENTS), scalars))


def addresses(xs: Iterable[Tensor]) -> Addresses:
    """The addresses of tensors as an array of unsigned 64-bit integers."""
    return array("Q", map(Tensor.data_ptr, xs))


def numels(xs: list[Tensor]) -> Addresses:
    """The numbers of elements of tensors as an array of unsigned 64-bit integers."""
    return array("Q", map(Tensor.numel, xs))


def select(column: list[Any], places: list[int]) -> list[Any]:
    """The entries at these places; the column itself if that is all of them."""
    return column if len(places) == len(column) else [column[i] for i in places]


def state_rows(state: Columns) -> list[dict[str, Tensor]]:
    """The state of each parameter as a dict, from the columns."""
    return [dict(zip(state, row, strict=True)) for row in zip(*state.values(), strict=True)]


def tensor_types(xs: list[Tensor]) -> Any:
    """Type, dtype and device index of tensors: one tuple if they are alike, otherwise a list of one per tensor."""
    types, dtypes, devices = set(map(type, xs)), {x.dtype for x in xs}, set(map(device_index, xs))
    return tensor_type(xs[0]) if len(types) == len(dtypes) == len(devices) == 1 else list(map(tensor_type, xs))


def tensor_type(x: Tensor) -> tuple[type, torch.dtype, int]:
    """Type, dtype and device index of a tensor."""
    return type(x), x.dtype, device_index(x)


device_index = Tensor.get_device
shape = attrgetter("shape")


def by_kind(columns: Columns) -> dict[Any, list[int]]:
    """The places of parameters, grouped by their device and the kind of their entry in each column."""
    params, column_kinds = columns["param"], [tensor_types(column) for column in columns.values()]
    if len({p.device for p in params}) == 1 and all(isinstance(one, tuple) for one in column_kinds):
        return {(params[0].device, *column_kinds): list(range(len(params)))}
    batches: dict[Any, list[int]] = {}
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        batches.setdefault((params[i].device, *map(tensor_type, row)), []).append(i)
    return batches


def dtypes_match(dtypes: dict[str, torch.dtype]) -> bool:
    """Whether dtypes, by state key, "param" and "grad", meet the conditions that all kernels share."""
    scalars = {dtypes[key] for key in REACH_STATE if key in dtypes}
    scalars_fit = {dtypes["step"], *scalars} <= {torch.float32, torch.float64}
    return scalars_fit and len(scalars) <= 1 and dtypes["grad"] == dtypes["param"]


def dense(param: Tensor, moments: Iterable[Tensor]) -> bool:
    """Whether parameter and moments have the same dense memory layout, and the parameter no neg bit."""
    if param.is_neg():
        return False
    if param.is_contiguous():
        return all(x.is_contiguous() for x in moments)
    stride = param.stride()
    return torch.empty_like(param).stride() == stride and all(x.stride() == stride for x in moments)


def all_dense(places: list[int], params: list[Tensor], moments: list[list[Tensor]]) -> list[int]:
    """The places of parameters that are :func:`dense` with their moments."""
    plain = all(all(map(Tensor.is_contiguous, column)) for column in (params, *moments))
    if plain and not any(map(Tensor.is_neg, params)):
        return places
    return [i for i in places if dense(params[i], [column[i] for column in moments])]


def overlap(dense: list[Tensor], others: list[Tensor]) -> bool:
    """Whether any two of these tensors may share memory: the order of their updates would matter."""
    spans = [(x.data_ptr(), x.nbytes) for x in dense]
    for x in others:
        last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
        spans.append((x.data_ptr(), (last + 1) * x.element_size() if x.numel() else 0))
    return any(start + size > following for (start, size), (following, _) in pairwise(sorted(spans)))


def check_shapes(columns: Columns) -> None:
    """Refuse gradients and moments of another shape than their parameter: ``param.data = …`` changes only its own."""
    params = list(map(shape, columns["param"]))
    for key in ("grad", *MOMENTS):
        for i, found in enumerate(map(shape, columns.get(key, ()))):
            if found != params[i]:
                raise RuntimeError(
                    f"{key} of a parameter of shape {tuple(params[i])} has shape {tuple(found)}: the parameter was "
                    "given other data; delete its state (del optimizer.state[p]) or make a new optimizer"
                )


def plan_batches(
    params: list[Tensor],
    grads: list[Tensor],
    state: Columns,
    param_indices: list[int],
    key: Any,
    supports: Callable[[torch.device, dict[str, torch.dtype]], bool],
) -> BatchPlan:
    """A plan with batches of tensors for which ``supports(device, dtypes)`` is true, and the places of all others.

    Raises:
        RuntimeError: a gradient or a moment has another shape than its parameter: the kernel would write out of bounds.
    """
    columns = {"param": params, "grad": grads, **state}
    check_shapes(columns)
    moments = [columns[key] for key in MOMENTS]
    batches, rest = [], []
    for (device, *column_kinds), places in by_kind(columns).items():
        plain = all(type_ in PLAIN and index == column_kinds[0][2] for type_, _, index in column_kinds)
        dtypes = dict(zip(columns, (dtype for _, dtype, _ in column_kinds), strict=True))
        taken = all_dense(places, params, moments) if plain and supports(device, dtypes) else []
        batches += [Batch(columns, param_indices, taken)] if taken else []
        rest += sorted(set(places) - set(taken))
    others = [params[i] for i in rest if batches and type(params[i]) in PLAIN]
    if overlap([x for one in batches for i in one.places for x in (params[i], *(m[i] for m in moments))], others):
        batches, rest = [], list(range(len(params)))
    if not all(set(map(type, column)) <= PLAIN for column in (params, *state.values())):
        return BatchPlan(batches, rest, key, None, [])
    scalars = [x.detach() for key in state for x in state[key] if key not in MOMENTS]
    return BatchPlan(batches, rest, key, plan_addresses(params, state), scalars)


def in_layout_of(grad: Tensor, param: Tensor) -> Tensor:
    """The gradient, or a copy in the parameter's layout. The copy also resolves a neg bit and a ZeroTensor."""
    alike = grad.stride() == param.stride() or (grad.is_contiguous() and param.is_contiguous())
    if alike and not (grad.is_neg() or grad._is_zerotensor()):
        return grad
    return torch.empty_like(param, dtype=grad.dtype).copy_(grad)
