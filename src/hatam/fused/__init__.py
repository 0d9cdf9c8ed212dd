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
from .batches import PLAIN, BatchPlan, Columns, kinds, numels, plan_batches

KERNELS: dict[str, ModuleType] = {"cpu": cpu, "cuda": gpu}
"""By the type of device. Each has ``unavailable_reason()``, ``supports(dtypes, options)`` and
``step(batch, options)``."""
NAMES = {"cpu": "CPU", "cuda": "GPU"}


def enabled_devices(group: Mapping[str, Any]) -> tuple[str, ...]:
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


def keeps_step_on_device(group: Mapping[str, Any], param: Tensor) -> bool:
    """Whether ``step`` lies on the parameter's device. Else it lies on the CPU, where the host reads it at once."""
    if group["capturable"] or group["fused"]:
        return True
    device = param.device.type
    taken = (
        type(getattr(param, "_local_tensor", param)) in PLAIN
        and param.dtype in gpu.DTYPES
        and group["state_dtype"] != "8bit"
    )
    return (
        not param.is_cpu and taken and group["gamma"] != 0 and device in enabled_devices(group) and is_available(device)
    )


@cache
def is_available(device: str) -> bool:
    """Whether there is a kernel. Logs one warning where there is none, because steps are slower then."""
    reason = KERNELS[device].unavailable_reason()
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
        reason = KERNELS[device].unavailable_reason()
        if reason:
            return f"there is no fused {NAMES[device]} kernel: {reason}"
    return None


def skips_by_itself(groups: list[dict[str, Any]]) -> bool:
    """Whether a GradScaler's ``found_inf`` is read on the device, so that the host need not wait for it."""
    on_gpu = all(KERNELS.get(p.device.type) is gpu for group in groups for p in group["params"])
    return on_gpu and all(group["fused"] for group in groups) and not torch.compiler.is_compiling()


def step(
    plan: BatchPlan | None,
    devices: tuple[str, ...],
    params: list[Tensor],
    grads: list[Tensor],
    state: Columns,
    param_indices: list[int],
    o: Options,
) -> BatchPlan:
    """One step of the tensors that a kernel takes on these types of device; all others are ``rest`` of the result.

    Args:
        plan: of the last step of these lists, to be used again while no tensor has moved.
        devices: of :func:`enabled_devices`.
        params, grads, state, param_indices: of the step; the lists are those of the plan.
        o: options of the step.

    Raises:
        RuntimeError: see :func:`hatam.fused.batches.plan_batches`.
    """
    strides = all(map(Tensor.is_contiguous, params)) or [*map(Tensor.stride, params)]
    of_tensors = kinds(params), kinds(grads), numels(params), numels(grads), strides
    key = (devices, o.modulator, o.eps, o.round_param, o.round_state, *of_tensors)
    if plan is None or not plan.is_current(params, state, key):

        def supports(device: torch.device, dtypes: dict[str, torch.dtype]) -> bool:
            return device.type in devices and is_available(device.type) and KERNELS[device.type].supports(dtypes, o)

        plan = plan_batches(params, grads, state, param_indices, key, supports)
    for batch in plan.batches:
        taken, batch.at["grad"] = batch.take_grads(grads)
        KERNELS[batch.device].step(batch, o)
        del taken  # copies must outlive the call, which got only their addresses
    return plan
