"""Fused kernels, one pass over memory for all tensors of a group: which tensors they take, and which they leave.

:mod:`hatam.fused.cpu` is for CPU tensors. What a kernel does not take (tensor subclasses, parameters that are not dense
or share memory, rare dtypes) gets the same step on another path.
"""

from __future__ import annotations

import logging
from functools import cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..storage import MOMENTS
from ..update import Options
from . import cpu

Columns = dict[str, list[Tensor]]


def chosen(group: dict[str, Any], params: list[Tensor]) -> bool:
    """``fused`` itself, or for None whether a kernel would be faster; both only where there is one."""
    if torch.compiler.is_compiling():
        return False  # the compiler fuses by itself
    if group["fused"] is not None:
        return bool(group["fused"]) and at_hand()
    other_path = group["foreach"] is not None or group["capturable"] or group["differentiable"]
    return not other_path and any(p.is_cpu for p in params) and at_hand()


@cache
def at_hand() -> bool:
    """Whether there is a CPU kernel. Says so once where there is none, for the user has to wait longer then."""
    reason = cpu.missing()
    if reason:
        logging.getLogger("hatam").warning("no fused CPU kernel, falling back to foreach: %s", reason)
    return not reason


def refusal(devices: set[str]) -> str | None:
    """Why there can be no fused step on these types of device, if so."""
    for device in sorted(devices - {"cpu"}):
        return f"there is no fused kernel for parameters on {device!r}, only for 'cpu'; leave fused at None"
    return f"there is no fused CPU kernel: {cpu.missing()}" if "cpu" in devices and cpu.missing() else None


def split(params: list[Tensor], grads: list[Tensor], state: Columns, o: Options) -> tuple[list[list[int]], list[int]]:
    """The places of the tensors that a kernel takes, in batches of the same types; and those of all others."""
    columns = [params, grads, *state.values()]
    kinds = zip(*([(type(x), x.dtype, x.is_cpu) for x in column] for column in columns), strict=True)
    batches: dict[Any, list[int]] = {}
    for i, kind in enumerate(kinds):
        batches.setdefault(kind, []).append(i)
    taken, others = [], []
    for kind, places in batches.items():
        plain = all(of in (Tensor, Parameter) and on_cpu for of, _, on_cpu in kind)
        dtypes = dict(zip(("param", "grad", *state), (dtype for _, dtype, _ in kind), strict=True))
        if not (plain and cpu.takes(dtypes, o)):
            others += places
            continue
        fits = [i for i in places if dense(params[i], [state[key][i] for key in MOMENTS if key in state])]
        others += sorted(set(places) - set(fits))
        taken.append(fits)
    written = [
        xs[i] for xs in (params, *(state[key] for key in MOMENTS if key in state)) for fits in taken for i in fits
    ]
    return ([], list(range(len(params)))) if overlap(written) else (taken, others)


def dense(param: Tensor, moments: list[Tensor]) -> bool:
    """Whether parameter and state lie in memory alike and without holes, so that they can be walked as one line."""
    if param.is_contiguous():
        return all(x.is_contiguous() for x in moments)
    stride = param.stride()
    return torch.empty_like(param).stride() == stride and all(x.stride() == stride for x in moments)


def overlap(tensors: list[Tensor]) -> bool:
    """Whether any two dense tensors share memory, so that the order of the updates matters."""
    spans = sorted((x.data_ptr(), x.numel() * x.element_size()) for x in tensors)
    return any(start + size > following for (start, size), (following, _) in pairwise(spans))


def step(params: list[Tensor], grads: list[Tensor], state: Columns, numbers: list[int], o: Options) -> list[int]:
    """One step of the tensors that a kernel takes; returns the places of the others."""
    batches, others = split(params, grads, state, o)
    for batch in batches:
        if batch:
            aligned = [like(grads[i], params[i]) for i in batch]
            chosen_state = {key: [column[i] for i in batch] for key, column in state.items()}
            cpu.step([params[i] for i in batch], aligned, chosen_state, [numbers[i] for i in batch], o)
    return others


def like(grad: Tensor, param: Tensor) -> Tensor:
    """The gradient in its parameter's layout."""
    if grad.stride() == param.stride() or (grad.is_contiguous() and param.is_contiguous()):
        return grad
    return torch.empty_like(param, dtype=grad.dtype).copy_(grad)
