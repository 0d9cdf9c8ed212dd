"""The code paths of a group's step: torch's AdamW, a fused kernel, multi-tensor operations, or tensor by tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import Optimizer, _default_to_fused_or_foreach

from . import fused, narrow, update
from .fused.batches import Columns, dense, in_layout_of, select, state_rows
from .state import real, real_grads
from .subsets import Subset
from .update import ADAMW_STAGES, HATAM_STAGES, Options, Stages, State

PORTION = 2**20  # elements per multi-tensor operation on a CPU


def run_adamw(subset: Subset, grads: list[Tensor], group: dict[str, Any], o: Options) -> None:
    """Step with torch's AdamW. If it does not support a dtype of the subset, call :func:`run_hatam` instead."""
    params, state = subset.params, subset.columns
    states = state_rows(state)
    if any_narrow(params, grads, states, o):
        run_hatam(subset, grads, group, o)
        return
    use_fused, maximize = group["fused"] or has_step_for_kernel(group, state), group["maximize"]
    amp: dict[str, Any] = {}
    if use_fused and not torch.compiler.is_compiling():
        if fused_adamw_takes(params, states):
            grads = [in_layout_of(g, p) for g, p in zip(grads, params, strict=True)]  # the kernel reads raw memory
            amp = {"grad_scale": o.grad_scale, "found_inf": o.found_inf}
        elif is_skipped(o):
            return
        else:
            grads = [g.to(p.dtype) for g, p in zip(unscale_and_sign(grads, o), params, strict=True)]
            use_fused, maximize = False, False
    adamw(
        params,
        grads,
        state["exp_avg"],
        state["exp_avg_sq"],
        [],
        state["step"],
        foreach=False if group["foreach"] and lr_forbids_foreach(group) else group["foreach"],
        capturable=group["capturable"],
        differentiable=group["differentiable"],
        fused=use_fused,
        has_complex=any(p.is_complex() for p in params),
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=maximize,
        **amp,
    )


def has_step_for_kernel(group: dict[str, Any], state: Columns) -> bool:
    """Return whether ``step`` is on a GPU only for HATAM's kernel. torch's unfused AdamW would wait for it there."""
    return group["fused"] is None and not group["capturable"] and any(not step.is_cpu for step in state["step"])


def lr_forbids_foreach(group: dict[str, Any]) -> bool:
    """Return whether lr is a tensor that torch's multi-tensor AdamW does not support."""
    return isinstance(group["lr"], Tensor) and not group["capturable"]


def any_narrow(params: list[Tensor], grads: list[Tensor], states: list[State], o: Options) -> bool:
    """Return whether a parameter needs :mod:`hatam.narrow`, so that torch's AdamW cannot step it."""
    return any(narrow.is_needed(*row, o) for row in zip(params, grads, states, strict=True))


def fused_adamw_takes(params: list[Tensor], states: list[State]) -> bool:
    """Return whether torch's fused AdamW can read all tensors as raw memory."""
    pairs = zip(params, states, strict=True)
    return all(p.is_floating_point() and dense(p, [s["exp_avg"], s["exp_avg_sq"]]) for p, s in pairs)


def is_skipped(o: Options) -> bool:
    """Return whether a GradScaler skips this step. Waits for the device, so that only unfused paths call it."""
    return o.found_inf is not None and bool(o.found_inf.item())


def run_hatam(subset: Subset, grads: list[Tensor], group: dict[str, Any], o: Options) -> None:
    """Step the tensors that a fused kernel supports, then the others unfused."""
    params, state, param_indices = subset.params, subset.columns, subset.param_indices
    if any(map(torch.is_complex, params)):
        params, grads = [real(p) for p in params], real_grads(grads)
        state = {key: [real(x) for x in column] for key, column in state.items()}
    devices = fused.enabled_devices(group)
    if devices:
        subset.plan = fused.step(subset.plan, devices, params, grads, state, param_indices, o)
        rest = subset.plan.rest
        if not rest:
            return
        params, grads, param_indices = select(params, rest), select(grads, rest), select(param_indices, rest)
        state = {key: select(column, rest) for key, column in state.items()}
    if is_skipped(o):
        return
    resolved = [p.resolve_neg() for p in params]  # torch's _foreach operations cannot write to tensors with the neg bit
    stages = HATAM_STAGES if subset.has_reach else ADAMW_STAGES
    run_unfused(stages, resolved, unscale_and_sign(grads, o), state_rows(state), param_indices, group, o)
    for param, result in zip(params, resolved, strict=True):
        if result is not param:
            param.copy_(result)


def run_unfused(
    stages: Stages,
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
    param_indices: list[int],
    group: dict[str, Any],
    o: Options,
) -> None:
    """Step the tensors of each device and dtype together, or one by one.

    Tensors that need :mod:`hatam.narrow` are stepped one by one, and under torch.compile all are: the compiler fuses.
    """
    foreach = group["foreach"]
    if torch.compiler.is_compiling():
        foreach = False  # a multi-tensor GPU kernel of torch 2.11's inductor overwrites values that others still read
    elif foreach is None:
        _, foreach = _default_to_fused_or_foreach(params, group["differentiable"], use_fused=False)
    foreach = foreach and not lr_forbids_foreach(group)
    together = []
    for i, (param, grad, state) in enumerate(zip(params, grads, states, strict=True)):
        if narrow.is_needed(param, grad, state, o):
            narrow.step_(stages, param, grad, state, o, param_indices[i])
        elif foreach:
            together.append(i)
        else:
            update.step_(stages, [param], [grad], [state], o)
    if not together:
        return
    columns: list[list[Tensor | None]] = [[params[i] for i in together]]
    for _, batch in Optimizer._group_tensors_by_device_and_dtype(columns, with_indices=True).values():
        for places in portions([together[i] for i in batch], params):
            portion, portion_grads = [params[i] for i in places], [grads[i] for i in places]
            update.step_(stages, portion, portion_grads, [states[i] for i in places], o)


def portions(places: list[int], params: list[Tensor]) -> list[list[int]]:
    """Split places of tensors into portions to step together. CPU portions are so small that the cache holds them."""
    split: list[list[int]] = [[]]
    elements = 0
    for i in places:
        elements += params[i].numel()
        if elements > PORTION and split[-1] and params[i].is_cpu:
            split.append([])
            elements = params[i].numel()
        split[-1].append(i)
    return split


def unscale_and_sign(grads: list[Tensor], o: Options) -> list[Tensor]:
    """Return gradients without the loss scale, negated to maximize. Unscaled float16 becomes float32, for its range."""
    if not isinstance(o.grad_factor, Tensor) and o.grad_factor == 1:
        return grads
    if isinstance(o.grad_factor, Tensor):
        grads = [g.float() if g.dtype == torch.float16 else g for g in grads]
    return list(torch._foreach_mul(grads, o.grad_factor))
