"""Choice of the tensors that fused kernels update. A kernel makes one pass over memory for all tensors of a batch.

:mod:`hatam.fused.cpu` is for CPU tensors, :mod:`hatam.fused.gpu` for CUDA tensors. Other paths take the same step for
unsupported tensors: tensor subclasses, tensors that are not dense or share memory, and rare dtypes.
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
from .batches import PLAIN, BatchPlan, Columns, numels, plan_batches, tensor_types

KERNELS: dict[str, ModuleType] = {"cpu": cpu, "cuda": gpu}
"""The kernel modules by device type. Each has ``unavailable_reason()``, ``supports(dtypes, options)`` and
``step(batch, options)``."""
NAMES = {"cpu": "CPU", "cuda": "GPU"}


def enabled_devices(group: Mapping[str, Any]) -> tuple[str, ...]:
    """The device types whose tensors the group's options let a kernel update.

    With ``fused=None``, ``foreach`` (True or False) and ``differentiable`` exclude all, ``capturable`` the CPU kernel.
    """
    if torch.compiler.is_compiling():
        return ()  # torch.compile generates fused kernels itself
    if group["fused"] is not None:
        return tuple(KERNELS) if group["fused"] else ()
    if group["foreach"] is not None or group["differentiable"]:
        return ()
    return ("cuda",) if group["capturable"] else tuple(KERNELS)


def keeps_step_on_device(group: Mapping[str, Any], param: Tensor) -> bool:
    """Whether ``step`` is kept on the parameter's device. Otherwise it is on the CPU, where reading it is fast."""
    if group["capturable"] or group["fused"]:
        return True
    device = param.device.type
    fits = (
        type(getattr(param, "_local_tensor", param)) in PLAIN
        and param.dtype in gpu.DTYPES
        and group["state_dtype"] != "8bit"
    )
    return (
        not param.is_cpu and fits and group["gamma"] != 0 and device in enabled_devices(group) and is_available(device)
    )


@cache
def is_available(device: str) -> bool:
    """Whether the kernel for a device type can run. If not, one warning is logged, because steps are slower then."""
    reason = KERNELS[device].unavailable_reason()
    if reason:
        logging.getLogger("hatam").warning(
            "no fused %s kernel, falling back to foreach or single-tensor updates: %s", NAMES[device], reason
        )
    return not reason


def refusal(devices: set[str]) -> str | None:
    """The reason why a fused step is impossible on these device types, or None."""
    for device in sorted(devices - KERNELS.keys()):
        only = " and ".join(map(repr, KERNELS))
        return f"there is no fused kernel for parameters on {device!r}, only for {only}; leave fused at None"
    for device in sorted(devices):
        reason = KERNELS[device].unavailable_reason()
        if reason:
            return f"there is no fused {NAMES[device]} kernel: {reason}"
    return None


def skips_by_itself(groups: list[dict[str, Any]]) -> bool:
    """Whether kernels read a GradScaler's ``found_inf`` on the device, so that the CPU does not wait for it."""
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
    """Update the tensors that a kernel supports, and return the plan; its ``rest`` lists all other tensors.

    Args:
        plan: the plan of the last step with the same lists. It is used again if it is current.
        devices: the result of :func:`enabled_devices`.
        params, grads, state, param_indices: the tensors of the step in columns, and their indices among all parameters.
        o: options of the step.

    Raises:
        RuntimeError: see :func:`hatam.fused.batches.plan_batches`.
    """
    strides = all(map(Tensor.is_contiguous, params)) or [*map(Tensor.stride, params)]
    tensor_info = tensor_types(params), tensor_types(grads), numels(params), numels(grads), strides
    key = (devices, o.modulator, o.eps, o.round_param, o.round_state, *tensor_info)
    if plan is None or not plan.is_current(params, state, key):

        def supports(device: torch.device, dtypes: dict[str, torch.dtype]) -> bool:
            return device.type in devices and is_available(device.type) and KERNELS[device.type].supports(dtypes, o)

        plan = plan_batches(params, grads, state, param_indices, key, supports)
    for batch in plan.batches:
        own_grads, batch.addresses["grad"] = batch.aligned_grads(grads)
        KERNELS[batch.device].step(batch, o)
        del own_grads  # kept until here: the kernel has only addresses, also of copies made for it
    return plan
