"""Which tensors of a group a kernel may walk as plain memory, in which batches; found once while they stay the same."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable
from itertools import pairwise
from operator import attrgetter, is_
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.nn import Parameter

from ..storage import MOMENTS, SCALARS

Columns = dict[str, list[Tensor]]
Numbers = dict[str, "array[int]"]
PLAIN = {Tensor, Parameter}


class Batch(NamedTuple):
    """What a kernel takes in one call: tensors of one device, every column of one dtype, every row of one layout."""

    params: list[Tensor]
    grads: list[Tensor]  # some of them copies, which live as long as their addresses are needed
    dtypes: dict[str, torch.dtype]  # by the name in the state, "param" and "grad"
    at: Numbers  # addresses by the same names, and "numel"
    numbers: list[int]  # of the parameters, for random numbers


class Division(NamedTuple):
    """The places of the tensors that kernels take, in batches, and of all others; and what that was found from."""

    batches: list[list[int]]
    others: list[int]
    asked: Any
    columns: Columns
    at: Numbers | None

    def holds(self, asked: Any, columns: Columns, at: Numbers | None) -> bool:
        """Whether nothing has changed: the same objects, of which ``.data`` has not been set to other memory either."""
        same = at is not None and self.at == at and self.asked == asked
        return same and all(all(map(is_, self.columns[key], column)) for key, column in columns.items())


def located(columns: Columns) -> Numbers | None:
    """Where every tensor lies, and how many elements a parameter has; None where some are of a class of their own."""
    if not all(set(map(type, column)) <= PLAIN for column in columns.values()):
        return None
    found = {key: array("Q", map(Tensor.data_ptr, column)) for key, column in columns.items()}
    return found | {"numel": array("Q", map(Tensor.numel, columns["param"]))}


def picked(column: Any, places: list[int]) -> Any:
    """Some of the entries, in a list or array like the one they are in."""
    if len(places) == len(column):
        return column
    some = [column[i] for i in places]
    return array(column.typecode, some) if isinstance(column, array) else some


def rows(state: Columns) -> list[dict[str, Tensor]]:
    """One state for every parameter."""
    return [dict(zip(state, row, strict=True)) for row in zip(*state.values(), strict=True)]


def kinds(xs: list[Tensor]) -> Any:
    """Type, dtype and device of all tensors; said once where they are alike, which is soon seen by column."""
    of, dtypes, devices = set(map(type, xs)), {x.dtype for x in xs}, set(map(on_device, xs))
    return kind(xs[0]) if len(of) == len(dtypes) == len(devices) == 1 else list(map(kind, xs))


def kind(x: Tensor) -> tuple[type, torch.dtype, int]:
    """What a kernel wants to know of a tensor."""
    return type(x), x.dtype, on_device(x)


on_device = Tensor.get_device
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


def alike(dtypes: dict[str, torch.dtype]) -> bool:
    """Whether dtypes, by their names in the state, "param" and "grad", go together as every kernel needs it."""
    scalars = {dtypes[key] for key in SCALARS if key in dtypes}
    known = {dtypes["step"], *scalars} <= {torch.float32, torch.float64}
    return known and len(scalars) <= 1 and dtypes["grad"] == dtypes["param"]


def dense(param: Tensor, moments: Iterable[Tensor]) -> bool:
    """Whether parameter and state lie in memory alike and without holes, so that they can be walked as one line.

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
    """Of gradients and moments, which ``.data`` set to something of another shape leaves as they were."""
    params = list(map(shape, columns["param"]))
    for key in ("grad", *MOMENTS):
        for i, found in enumerate(map(shape, columns.get(key, ()))):
            if found != params[i]:
                raise RuntimeError(
                    f"{key} of a parameter of shape {tuple(params[i])} has shape {tuple(found)}: the parameter was "
                    "given other data since; remove its state (del optimizer.state[p]) or make a new optimizer"
                )


def divide(columns: Columns, takes: Callable[..., bool]) -> tuple[list[list[int]], list[int]]:
    """The batches for which ``takes(device, dtypes)``, and the places of all other tensors.

    Raises:
        RuntimeError: a gradient or a moment has another shape than its parameter, which a kernel would leave.
    """
    check_shapes(columns)
    params, *moments = written = [columns[key] for key in ("param", *MOMENTS) if key in columns]
    batches, others = [], []
    for (device, *kinds), places in by_kind(columns).items():
        plain = all(of in PLAIN and on == kinds[0][2] for of, _, on in kinds)
        dtypes = dict(zip(columns, (dtype for _, dtype, _ in kinds), strict=True))
        fits = all_dense(places, params, moments) if plain and takes(device, dtypes) else []
        batches += [fits] if fits else []
        others += sorted(set(places) - set(fits))
    left = [params[i] for i in others if batches and type(params[i]) in PLAIN]
    if overlap([column[i] for column in written for batch in batches for i in batch], left):
        return [], list(range(len(params)))
    return batches, others


def batch(columns: Columns, grads: list[Tensor], numbers: list[int], at: Numbers | None, places: list[int]) -> Batch:
    """Some of the rows, for a kernel."""
    some = {key: picked(column, places) for key, column in columns.items()}
    params, aligned_grads = some["param"], aligned(picked(grads, places), some["param"])
    known = located(some) if at is None else {key: picked(column, places) for key, column in at.items()}
    dtypes = {key: column[0].dtype for key, column in (*some.items(), ("grad", aligned_grads))}
    rows = {**cast(Numbers, known), "grad": array("Q", map(Tensor.data_ptr, aligned_grads))}
    return Batch(params, aligned_grads, dtypes, rows, picked(numbers, places))


def aligned(grads: list[Tensor], params: list[Tensor]) -> list[Tensor]:
    """The gradients in their parameters' layouts."""
    plain = all(map(Tensor.is_contiguous, grads)) and all(map(Tensor.is_contiguous, params))
    if plain and not (any(map(Tensor.is_neg, grads)) or any(map(Tensor._is_zerotensor, grads))):
        return grads
    return [like(g, p) for g, p in zip(grads, params, strict=True)]


def like(grad: Tensor, param: Tensor) -> Tensor:
    """The gradient in its parameter's layout, with its values in memory: not negated by a bit, nor zero by a key."""
    alike = grad.stride() == param.stride() or (grad.is_contiguous() and param.is_contiguous())
    if alike and not (grad.is_neg() or grad._is_zerotensor()):
        return grad
    return torch.empty_like(param, dtype=grad.dtype).copy_(grad)
