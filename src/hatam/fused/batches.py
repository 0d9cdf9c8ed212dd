"""Which tensors of a group a kernel may walk as plain memory, in which batches; cached while they stay the same."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from itertools import chain, pairwise
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import Parameter

from ..storage import MOMENTS, SCALARS

Columns = dict[str, list[Tensor]]
Addresses: TypeAlias = "array[int]"
PLAIN = {Tensor, Parameter}


class Batch:
    """What a kernel takes in one call: tensors of one device, every column of one dtype, every row of one layout."""

    def __init__(self, columns: Columns, param_indices: list[int], places: list[int]) -> None:
        some = {key: select(column, places) for key, column in columns.items()}
        self.places, self.params, self.param_indices = places, some["param"], select(param_indices, places)
        self.device, self.contiguous = self.params[0].device.type, all(map(Tensor.is_contiguous, self.params))
        self.dtypes = {key: column[0].dtype for key, column in some.items()}  # by name in the state, "param" and "grad"
        self.at = {key: addresses(column) for key, column in some.items() if key != "grad"}
        self.at["numel"] = numels(self.params)
        self.kernel_cache: Any = None  # cache of the kernel

    def take_grads(self, grads: list[Tensor]) -> tuple[list[Tensor], Addresses]:
        """The gradients of these parameters in their layouts, some of them copies, and where they lie."""
        some = select(grads, self.places)
        if self.contiguous and all(map(Tensor.is_contiguous, some)) and not any(map(Tensor.is_neg, some)):
            at = addresses(some)
            if 0 not in at:  # null: an empty gradient, or a ZeroTensor
                return some, at
        some = [in_layout_of(g, p) for g, p in zip(some, self.params, strict=True)]
        return some, addresses(some)


class BatchPlan(NamedTuple):
    """The tensors that kernels take, in batches, and the places of all others; and what that was found from."""

    batches: list[Batch]
    rest: list[int]
    key: Any
    at: Addresses | None  # see :func:`plan_addresses`; None with tensor subclasses, for which a plan is never reused
    scalars: list[Tensor]  # aliases that keep the memory of the 0-dim state alive, whose addresses the kernel has

    def is_current(self, params: list[Tensor], state: Columns, key: Any) -> bool:
        """Whether kinds and addresses are the same. The lists must be those that the plan was made from."""
        return self.key == key and self.at is not None and self.at == plan_addresses(params, state)


def plan_addresses(params: list[Tensor], state: Columns) -> Addresses:
    """Where tensors lie: all that have a parameter's size, and the 0-dim state of the first, to stand for all.

    Who moves state to other memory by ``.data`` moves all of it.
    """
    scalars = (column[0] for key, column in state.items() if key not in MOMENTS)
    return addresses(chain(params, *(state[key] for key in MOMENTS), scalars))


def addresses(xs: Iterable[Tensor]) -> Addresses:
    """Where tensors lie, as a kernel takes it."""
    return array("Q", map(Tensor.data_ptr, xs))


def numels(xs: list[Tensor]) -> Addresses:
    """How many elements tensors have."""
    return array("Q", map(Tensor.numel, xs))


def select(column: list[Any], places: list[int]) -> list[Any]:
    """Some of the entries."""
    return column if len(places) == len(column) else [column[i] for i in places]


def state_rows(state: Columns) -> list[dict[str, Tensor]]:
    """One state for every parameter."""
    return [dict(zip(state, row, strict=True)) for row in zip(*state.values(), strict=True)]


def kinds(xs: list[Tensor]) -> Any:
    """Type, dtype and device of all tensors: one tuple where they are alike, else one for each."""
    of, dtypes, devices = set(map(type, xs)), {x.dtype for x in xs}, set(map(device_index, xs))
    return kind(xs[0]) if len(of) == len(dtypes) == len(devices) == 1 else list(map(kind, xs))


def kind(x: Tensor) -> tuple[type, torch.dtype, int]:
    """What a kernel wants to know of a tensor."""
    return type(x), x.dtype, device_index(x)


device_index = Tensor.get_device
shape = attrgetter("shape")


def by_kind(columns: Columns) -> dict[Any, list[int]]:
    """The places by the device of the parameter, and by the kind of what stands in each column."""
    params, found = columns["param"], [kinds(column) for column in columns.values()]
    if len({p.device for p in params}) == 1 and all(isinstance(of, tuple) for of in found):
        return {(params[0].device, *found): list(range(len(params)))}
    batches: dict[Any, list[int]] = {}
    for i, row in enumerate(zip(*columns.values(), strict=True)):
        batches.setdefault((params[i].device, *map(kind, row)), []).append(i)
    return batches


def dtypes_match(dtypes: dict[str, torch.dtype]) -> bool:
    """Whether dtypes, by their names in the state, "param" and "grad", go together as every kernel needs it."""
    scalars = {dtypes[key] for key in SCALARS if key in dtypes}
    known = {dtypes["step"], *scalars} <= {torch.float32, torch.float64}
    return known and len(scalars) <= 1 and dtypes["grad"] == dtypes["param"]


def dense(param: Tensor, moments: Iterable[Tensor]) -> bool:
    """Whether parameter and state lie in memory alike and without holes, as one contiguous range.

    Not where a bit negates what is there.
    """
    if param.is_neg():
        return False
    if param.is_contiguous():
        return all(x.is_contiguous() for x in moments)
    stride = param.stride()
    return torch.empty_like(param).stride() == stride and all(x.stride() == stride for x in moments)


def all_dense(places: list[int], params: list[Tensor], moments: list[list[Tensor]]) -> list[int]:
    """The places where that is so."""
    plain = all(all(map(Tensor.is_contiguous, column)) for column in (params, *moments))
    if plain and not any(map(Tensor.is_neg, params)):
        return places
    return [i for i in places if dense(params[i], [column[i] for column in moments])]


def overlap(dense: list[Tensor], others: list[Tensor]) -> bool:
    """Whether any two tensors may share memory, so that the order of the updates matters."""
    spans = [(x.data_ptr(), x.nbytes) for x in dense]
    for x in others:
        last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
        spans.append((x.data_ptr(), (last + 1) * x.element_size() if x.numel() else 0))
    return any(start + size > following for (start, size), (following, _) in pairwise(sorted(spans)))


def check_shapes(columns: Columns) -> None:
    """Of gradients and moments: ``param.data = …`` changes the shape of the parameter alone."""
    params = list(map(shape, columns["param"]))
    for key in ("grad", *MOMENTS):
        for i, found in enumerate(map(shape, columns.get(key, ()))):
            if found != params[i]:
                raise RuntimeError(
                    f"{key} of a parameter of shape {tuple(params[i])} has shape {tuple(found)}: the parameter was "
                    "given other data since; remove its state (del optimizer.state[p]) or make a new optimizer"
                )


def plan_batches(
    params: list[Tensor],
    grads: list[Tensor],
    state: Columns,
    param_indices: list[int],
    key: Any,
    supports: Callable[[torch.device, dict[str, torch.dtype]], bool],
) -> BatchPlan:
    """The batches for which ``supports(device, dtypes)``, and the places of all other tensors.

    Raises:
        RuntimeError: a gradient or a moment has another shape than its parameter: the kernel would write out of bounds.
    """
    columns = {"param": params, "grad": grads, **state}
    check_shapes(columns)
    moments = [columns[key] for key in MOMENTS]
    batches, rest = [], []
    for (device, *found), places in by_kind(columns).items():
        plain = all(of in PLAIN and on == found[0][2] for of, _, on in found)
        dtypes = dict(zip(columns, (dtype for _, dtype, _ in found), strict=True))
        fits = all_dense(places, params, moments) if plain and supports(device, dtypes) else []
        batches += [Batch(columns, param_indices, fits)] if fits else []
        rest += sorted(set(places) - set(fits))
    left = [params[i] for i in rest if batches and type(params[i]) in PLAIN]
    if overlap([x for one in batches for i in one.places for x in (params[i], *(m[i] for m in moments))], left):
        batches, rest = [], list(range(len(params)))
    if not all(set(map(type, column)) <= PLAIN for column in (params, *state.values())):
        return BatchPlan(batches, rest, key, None, [])
    scalars = [x.detach() for key in state for x in state[key] if key not in MOMENTS]
    return BatchPlan(batches, rest, key, plan_addresses(params, state), scalars)


def in_layout_of(grad: Tensor, param: Tensor) -> Tensor:
    """The gradient in its parameter's layout, with its values in memory: not negated by a bit, nor zero by a key."""
    alike = grad.stride() == param.stride() or (grad.is_contiguous() and param.is_contiguous())
    if alike and not (grad.is_neg() or grad._is_zerotensor()):
        return grad
    return torch.empty_like(param, dtype=grad.dtype).copy_(grad)
