"""Fused kernels, one pass over memory for all tensors of a group: which tensors they take, and which they leave.

:mod:`hatam.fused.cpu` is for CPU tensors, :mod:`hatam.fused.gpu` for CUDA tensors. What a kernel does not take (tensor
subclasses, parameters that are not dense or share memory, rare dtypes) gets the same step on another path.
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Iterable
from functools import cache, lru_cache
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from ..storage import MOMENTS
from ..update import Options
from . import cpu, gpu

Columns = dict[str, list[Tensor]]

KERNELS: dict[str, ModuleType] = {"cpu": cpu, "cuda": gpu}
"""By the type of device. Each has ``missing()``, ``takes(dtypes, options)`` and ``step(...)``."""
NAMES = {"cpu": "CPU", "cuda": "GPU"}


def chosen(group: dict[str, Any]) -> tuple[str, ...]:
    """The types of device whose tensors go to a kernel: by ``fused`` itself, or for None where that is known to pay.

    None means the CPU alone: the GPU kernel's speed has not been measured yet.
    """
    if torch.compiler.is_compiling():
        return ()  # the compiler fuses by itself
    if group["fused"] is not None:
        return tuple(KERNELS) if group["fused"] else ()
    other_path = group["foreach"] is not None or group["capturable"] or group["differentiable"]
    return () if other_path else ("cpu",)


@cache
def at_hand(device: str) -> bool:
    """Whether there is a kernel. Says so once where there is none, for the user has to wait longer then."""
    reason = KERNELS[device].missing()
    if reason:
        logging.getLogger("hatam").warning("no fused %s kernel, falling back to foreach: %s", NAMES[device], reason)
    return not reason


def refusal(devices: set[str]) -> str | None:
    """Why there can be no fused step on these types of device, if so."""
    for device in sorted(devices - KERNELS.keys()):
        only = " and ".join(map(repr, KERNELS))
        return f"there is no fused kernel for parameters on {device!r}, only for {only}; leave fused at None"
    for device in sorted(devices):
        reason = KERNELS[device].missing()
        if reason:
            return f"there is no fused {NAMES[device]} kernel: {reason}"
    return None


def skips_by_itself(groups: list[dict[str, Any]]) -> bool:
    """Whether a GradScaler's ``found_inf`` is read on the device, so that the host need not wait for it."""
    on_gpu = all(KERNELS.get(p.device.type) is gpu for group in groups for p in group["params"])
    return on_gpu and all(group["fused"] for group in groups) and not torch.compiler.is_compiling()


def split(
    devices: tuple[str, ...], params: list[Tensor], grads: list[Tensor], state: Columns, o: Options
) -> tuple[list[list[int]], list[int]]:
    """The places of the tensors that a kernel takes, in batches of one device and of the same types; and all others."""
    moments = [state[key] for key in MOMENTS if key in state]
    taken, others = [], []
    for (device, *kind), places in by_kind(params, [grads, *state.values()]).items():
        plain = all(of in (Tensor, Parameter) and on == kind[0][2] for of, _, on in kind)
        dtypes = dict(zip(("param", "grad", *state), (dtype for _, dtype, _ in kind), strict=True))
        there = device.type in devices and at_hand(device.type)
        if not (plain and there and KERNELS[device.type].takes(dtypes, o)):
            others += places
            continue
        columns = [[column[i] for i in places] for column in (params, *moments)]
        if all(all(map(Tensor.is_contiguous, column)) for column in columns):
            taken.append(places)
            continue
        fits = [i for i, p, *ms in zip(places, *columns, strict=True) if dense(p, ms)]
        others += sorted(set(places) - set(fits))
        taken.append(fits)
    written = [column[i] for column in (params, *moments) for fits in taken for i in fits]
    left = [params[i] for i in others if taken and type(params[i]) in (Tensor, Parameter)]
    return ([], list(range(len(params)))) if overlap(written, left) else (taken, others)


def by_kind(params: list[Tensor], columns: list[list[Tensor]]) -> dict[Any, list[int]]:
    """The places by the device of the parameter, and by type, dtype and device of what stands in each column."""
    columns = [params, *columns]
    heads = [kind(column[0]) for column in columns]
    if len({p.device for p in params}) == 1 and all(
        # The usual case, sooner seen by column than by row.
        set(map(type, column)) == {of} and {x.dtype for x in column} == {dtype} and set(map(on_device, column)) == {on}
        for column, (of, dtype, on) in zip(columns, heads, strict=True)
    ):
        return {(params[0].device, *heads): list(range(len(params)))}
    batches: dict[Any, list[int]] = {}
    for i, row in enumerate(zip(*columns, strict=True)):
        batches.setdefault((params[i].device, *map(kind, row)), []).append(i)
    return batches


def kind(x: Tensor) -> tuple[type, torch.dtype, int]:
    """What a kernel wants to know of a tensor."""
    return type(x), x.dtype, on_device(x)


on_device = Tensor.get_device


def dense(param: Tensor, moments: Iterable[Tensor]) -> bool:
    """Whether parameter and state lie in memory alike and without holes, so that they can be walked as one line."""
    if param.is_contiguous():
        return all(x.is_contiguous() for x in moments)
    stride = param.stride()
    return torch.empty_like(param).stride() == stride and all(x.stride() == stride for x in moments)


def overlap(dense: list[Tensor], others: list[Tensor]) -> bool:
    """Whether any two tensors may share memory, so that the order of the updates matters."""
    starts = array("Q", map(Tensor.data_ptr, (*dense, *others)))
    sizes = array("Q", [x.nbytes for x in dense])
    for x in others:
        last = sum((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
        sizes.append((last + 1) * x.element_size() if x.numel() else 0)
    return collide(starts.tobytes(), sizes.tobytes())


@lru_cache(maxsize=32)
def collide(starts: bytes, sizes: bytes) -> bool:
    """Whether any two spans of memory meet. The same ones are asked for at every step."""
    spans = sorted(zip(array("Q", starts), array("Q", sizes), strict=True))
    return any(start + size > following for (start, size), (following, _) in pairwise(spans))


def step(
    devices: tuple[str, ...],
    params: list[Tensor],
    grads: list[Tensor],
    state: Columns,
    numbers: list[int],
    o: Options,
) -> list[int]:
    """One step of the tensors that a kernel takes on these types of device; returns the places of the others."""
    batches, others = split(devices, params, grads, state, o)
    for batch in filter(None, batches):
        ps, gs, ns = [params[i] for i in batch], [grads[i] for i in batch], [numbers[i] for i in batch]
        columns = {key: [column[i] for i in batch] for key, column in state.items()}
        KERNELS[ps[0].device.type].step(ps, aligned(gs, ps), columns, ns, o)
    return others


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
