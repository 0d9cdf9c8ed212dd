"""Fused kernels, one pass over memory for all tensors of a group: which tensors they take, and which they leave.

:mod:`hatam.fused.cpu` is for CPU tensors, :mod:`hatam.fused.gpu` for CUDA tensors. What a kernel does not take (tensor
subclasses, parameters that are not dense or share memory, rare dtypes) gets the same step on another path.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..update import Options
from . import cpu, gpu
from .batches import PLAIN, Columns, Division, counts, divide, kinds

KERNELS: dict[str, ModuleType] = {"cpu": cpu, "cuda": gpu}
"""By the type of device. Each has ``missing()``, ``takes(dtypes, options)`` and ``step(...)``."""
NAMES = {"cpu": "CPU", "cuda": "GPU"}


def chosen(group: Mapping[str, Any]) -> tuple[str, ...]:
    """The types of device whose tensors go to a kernel: by ``fused``; for None, where nothing else was asked for.

    None allows every kernel, unless foreach, differentiable or capturable asks for less.
    """
    if torch.compiler.is_compiling():
        return ()  # the compiler fuses by itself
    if group["fused"] is not None:
        return tuple(KERNELS) if group["fused"] else ()
    if group["foreach"] is not None or group["differentiable"]:
        return ()
    return ("cuda",) if group["capturable"] else tuple(KERNELS)


def counts_on_device(group: Mapping[str, Any], param: Tensor) -> bool:
    """Whether ``step`` lies on the parameter's device. Else it lies on the CPU, where the host reads it at once."""
    if group["capturable"] or group["fused"]:
        return True
    device = param.device.type
    taken = (
        type(getattr(param, "_local_tensor", param)) in PLAIN
        and param.dtype in gpu.DTYPES
        and group["state_dtype"] != "8bit"
    )
    return not param.is_cpu and taken and group["gamma"] != 0 and device in chosen(group) and at_hand(device)


@cache
def at_hand(device: str) -> bool:
    """Whether there is a kernel. Logs one warning where there is none, because steps are slower then."""
    reason = KERNELS[device].missing()
    if reason:
        logging.getLogger("hatam").warning(
            "no fused %s kernel, falling back to what torch would choose: %s", NAMES[device], reason
        )
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


def step(
    devices: tuple[str, ...],
    params: list[Tensor],
    grads: list[Tensor],
    state: Columns,
    numbers: list[int],
    o: Options,
    memory: dict[int, Division],
) -> list[int]:
    """One step of the tensors that a kernel takes on these types of device; returns the places of the others.

    ``memory`` maps the number of a call's first parameter to its last division, which is used again while the caller
    passes the same list objects and the tensors have not moved.
    """

    def takes(device: torch.device, dtypes: dict[str, torch.dtype]) -> bool:
        return device.type in devices and at_hand(device.type) and KERNELS[device.type].takes(dtypes, o)

    last = memory.get(numbers[0])
    strides = all(map(Tensor.is_contiguous, params)) or [*map(Tensor.stride, params)]
    of_tensors = kinds(params), kinds(grads), counts(params), counts(grads), strides
    asked = (devices, o.modulator, o.eps, o.round_param, o.round_state, *of_tensors)
    if last is None or not last.holds(params, state, asked):
        last = memory[numbers[0]] = divide(params, grads, state, numbers, asked, takes)
    for batch in last.batches:
        taken, batch.at["grad"] = batch.take(grads)
        KERNELS[batch.device].step(batch, o)
        del taken  # copies must outlive the call, which got only their addresses
    return last.others
