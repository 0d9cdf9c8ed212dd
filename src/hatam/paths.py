"""Which code path does a group's step: torch's AdamW, or HATAM's in a fused kernel, foreach or tensor by tensor."""

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

PORTION = 2**20  # elements that a multi-tensor operation walks at once on a CPU


def run_adamw(subset: Subset, grads: list[Tensor], group: dict[str, Any], o: Options) -> None:
    """torch's AdamW, bit for bit; dtypes that it refuses go to :func:`run_hatam`."""
    params, state = subset.params, subset.state
    states = state_rows(state)
    if any_narrow(params, grads, states, o):
        run_hatam(subset, grads, group, o)
        return
    use_fused, maximize = group["fused"] or counts_on_device(group, state), group["maximize"]
    amp: dict[str, Any] = {}
    if use_fused and not torch.compiler.is_compiling():
        if walks_memory(params, states):
            grads = [in_layout_of(g, p) for g, p in zip(grads, params, strict=True)]  # torch's kernel walks raw memory
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
        foreach=False if group["foreach"] and only_single(group) else group["foreach"],
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


def counts_on_device(group: dict[str, Any], state: Columns) -> bool:
    """Whether ``step`` lies on a GPU only because a kernel will want it there: other paths would wait for it."""
    return group["fused"] is None and not group["capturable"] and any(not step.is_cpu for step in state["step"])


def only_single(group: dict[str, Any]) -> bool:
    """Whether lr is a tensor that torch's multi-tensor AdamW does not take."""
    return isinstance(group["lr"], Tensor) and not group["capturable"]


def any_narrow(params: list[Tensor], grads: list[Tensor], states: list[State], o: Options) -> bool:
    """Whether a tensor is stored in a dtype that torch's AdamW does not take."""
    return any(narrow.is_needed(*row, o) for row in zip(params, grads, states, strict=True))


def walks_memory(params: list[Tensor], states: list[State]) -> bool:
    """Whether all tensors are such as torch's fused AdamW can walk as raw memory."""
    pairs = zip(params, states, strict=True)
    return all(p.is_floating_point() and dense(p, [s["exp_avg"], s["exp_avg_sq"]]) for p, s in pairs)


def is_skipped(o: Options) -> bool:
    """Whether a GradScaler skips this step. Waits for the device; for paths without a kernel alone."""
    return o.found_inf is not None and bool(o.found_inf.item())


def run_hatam(subset: Subset, grads: list[Tensor], group: dict[str, Any], o: Options) -> None:
    """Step what a fused kernel takes, then the rest unfused."""
    params, state, param_indices = subset.params, subset.state, subset.param_indices
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
    plain = [p.resolve_neg() for p in params]  # torch's _foreach operations cannot write to tensors with the neg bit
    stages = HATAM_STAGES if subset.has_reach else ADAMW_STAGES
    run_unfused(stages, plain, unscale_and_sign(grads, o), state_rows(state), param_indices, group, o)
    for param, resolved in zip(params, plain, strict=True):
        if resolved is not param:
            param.copy_(resolved)


def run_unfused(
    stages: Stages,
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
    param_indices: list[int],
    group: dict[str, Any],
    o: Options,
) -> None:
    """One tensor at a time, or all tensors of a device and dtype together; one by one what needs wider arithmetic.

    Where torch.compile traces this it is one at a time: the compiler fuses by itself.
    """
    foreach = group["foreach"]
    if torch.compiler.is_compiling():
        foreach = False  # for a GPU, torch 2.11's inductor writes in a multi-tensor kernel what others have yet to read
    elif foreach is None:
        _, foreach = _default_to_fused_or_foreach(params, group["differentiable"], use_fused=False)
    foreach = foreach and not only_single(group)
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
            some, theirs = [params[i] for i in places], [grads[i] for i in places]
            update.step_(stages, some, theirs, [states[i] for i in places], o)


def portions(places: list[int], params: list[Tensor]) -> list[list[int]]:
    """Tensors that are updated together: all on a GPU, and on a CPU so few that its cache holds them for all stages."""
    found: list[list[int]] = [[]]
    elements = 0
    for i in places:
        elements += params[i].numel()
        if elements > PORTION and found[-1] and params[i].is_cpu:
            found.append([])
            elements = params[i].numel()
        found[-1].append(i)
    return found


def unscale_and_sign(grads: list[Tensor], o: Options) -> list[Tensor]:
    """The gradients without the loss scale, negated to maximize; of float16, which the scale keeps in range, wider."""
    if not isinstance(o.grad_factor, Tensor) and o.grad_factor == 1:
        return grads
    if isinstance(o.grad_factor, Tensor):
        grads = [g.float() if g.dtype == torch.float16 else g for g in grads]
    return list(torch._foreach_mul(grads, o.grad_factor))
