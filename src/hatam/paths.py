"""Which code path does a group's step: torch's AdamW, or HATAM's in a fused kernel, foreach or tensor by tensor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import Optimizer, _default_to_fused_or_foreach

from . import fused, narrow, update
from .fused.batches import Columns, Division, dense, like, rows
from .reach import Scalar
from .state import real, real_grads
from .update import ADAMW_STAGES, Options, Stages, State, kept

PORTION = 2**20  # elements that a multi-tensor operation walks at once on a CPU


def raise_peak(group: dict[str, Any], found_inf: Tensor | None = None) -> Scalar:
    """Raise the group's peak lr by this step's, unless a GradScaler skips it. It lives in the group and checkpoints.

    Steps in which no parameter of the group has a gradient do not count.

    ``found_inf`` is given where only the device knows whether the step is skipped. The peak is a tensor there from then
    on, for a float lr in float64.
    """
    peak = group["lr_peak"] = peak_of_kind(group)
    lr = group["lr"]
    if found_inf is not None:
        if not (isinstance(peak, Tensor) and peak.device == found_inf.device):
            dtype = peak.dtype if isinstance(peak, Tensor) else torch.float64
            peak = group["lr_peak"] = torch.full((), float(peak), dtype=dtype, device=found_inf.device)
        raised = torch.maximum(peak, lr.reshape(peak.shape)) if is_beside(lr, peak) else peak.clamp(min=float(lr))
        peak.copy_(torch.where(found_inf.reshape(peak.shape) != 0, peak, raised))
    elif isinstance(peak, Tensor):
        peak.copy_(
            torch.maximum(kept([peak])[0], lr.reshape(peak.shape)) if isinstance(lr, Tensor) else peak.clamp(min=lr)
        )
    else:
        peak = group["lr_peak"] = max(peak, lr)
    return kept([peak])[0] if isinstance(peak, Tensor) else peak


def is_beside(x: Scalar, other: Tensor) -> bool:
    """Whether a number is a tensor on the device of another."""
    return isinstance(x, Tensor) and x.device == other.device


def skipped(o: Options) -> bool:
    """Whether a GradScaler skips this step. Waits for the device; for paths without a kernel alone."""
    return o.found_inf is not None and bool(o.found_inf.item())


def peak_of_kind(group: dict[str, Any]) -> Scalar:
    """``lr_peak`` as a tensor where lr is one, so that torch.compile sees no constant that changes."""
    lr, peak = group["lr"], group["lr_peak"]
    if isinstance(lr, Tensor):
        dtype = lr.dtype if lr.is_floating_point() else torch.float32
        return peak if isinstance(peak, Tensor) else torch.full_like(lr, peak, dtype=dtype, requires_grad=False)
    return peak if isinstance(peak, Tensor) and not peak.is_cpu else float(peak)  # without waiting for a device


def run_adamw(
    params: list[Tensor],
    grads: list[Tensor],
    state: Columns,
    numbers: list[int],
    *,
    group: dict[str, Any],
    o: Options,
    amp: dict[str, Tensor],
    divisions: dict[int, Division],
) -> None:
    """torch's AdamW, bit for bit; dtypes that it refuses go to :func:`run_parts`."""
    states = rows(state)
    if narrows(params, grads, states, o):
        run_parts(ADAMW_STAGES, params, grads, state, numbers, group=group, o=o, divisions=divisions)
        return
    use_fused, maximize = group["fused"] or counted_on_device(group, state), group["maximize"]
    if use_fused and not torch.compiler.is_compiling():
        if walks_memory(params, states):
            grads = [like(g, p) for g, p in zip(grads, params, strict=True)]  # torch's kernel walks raw memory
        elif skipped(o):
            return
        else:
            grads = [g.to(p.dtype) for g, p in zip(scaled(grads, o), params, strict=True)]
            use_fused, maximize, amp = False, False, {}
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


def counted_on_device(group: dict[str, Any], state: Columns) -> bool:
    """Whether ``step`` lies on a GPU only because a kernel will want it there: other paths would wait for it."""
    return group["fused"] is None and not group["capturable"] and any(not step.is_cpu for step in state["step"])


def only_single(group: dict[str, Any]) -> bool:
    """Whether lr is a tensor that torch's multi-tensor AdamW does not take."""
    return isinstance(group["lr"], Tensor) and not group["capturable"]


def narrows(params: list[Tensor], grads: list[Tensor], states: list[State], o: Options) -> bool:
    """Whether a tensor is stored in a dtype that torch's AdamW does not take."""
    return any(narrow.needed(*row, o) for row in zip(params, grads, states, strict=True))


def walks_memory(params: list[Tensor], states: list[State]) -> bool:
    """Whether all tensors are such as torch's fused AdamW can walk as raw memory."""
    pairs = zip(params, states, strict=True)
    return all(p.is_floating_point() and dense(p, [s["exp_avg"], s["exp_avg_sq"]]) for p, s in pairs)


def run_parts(
    stages: Stages,
    params: list[Tensor],
    grads: list[Tensor],
    state: Columns,
    numbers: list[int],
    *,
    group: dict[str, Any],
    o: Options,
    divisions: dict[int, Division],
) -> None:
    """Step what a fused kernel takes, then the rest unfused."""
    if any(map(torch.is_complex, params)):
        params, grads = [real(p) for p in params], real_grads(grads)
        state = {key: [real(x) for x in column] for key, column in state.items()}
    devices = fused.chosen(group)
    if devices:
        rest = fused.step(devices, params, grads, state, numbers, o, divisions)
        if not rest:
            return
        params, grads, numbers = [params[i] for i in rest], [grads[i] for i in rest], [numbers[i] for i in rest]
        state = {key: [column[i] for i in rest] for key, column in state.items()}
    if skipped(o):
        return
    plain = [p.resolve_neg() for p in params]  # torch's _foreach operations cannot write to tensors with the neg bit
    run_unfused(stages, plain, scaled(grads, o), rows(state), group, o, numbers)
    for param, resolved in zip(params, plain, strict=True):
        if resolved is not param:
            param.copy_(resolved)


def run_unfused(
    stages: Stages,
    params: list[Tensor],
    grads: list[Tensor],
    states: list[State],
    group: dict[str, Any],
    o: Options,
    numbers: list[int],
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
        if narrow.needed(param, grad, state, o):
            narrow.step_(stages, param, grad, state, o, numbers[i])
        elif foreach:
            together.append(i)
        else:
            update.step_(stages, [param], [grad], [state], o)
    if not together:
        return
    columns: list[list[Tensor | None]] = [[params[i] for i in together]]
    for _, batch in Optimizer._group_tensors_by_device_and_dtype(columns, with_indices=True).values():
        for chosen in portions([together[i] for i in batch], params):
            some, theirs = [params[i] for i in chosen], [grads[i] for i in chosen]
            update.step_(stages, some, theirs, [states[i] for i in chosen], o)


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


def scaled(grads: list[Tensor], o: Options) -> list[Tensor]:
    """The gradients without the loss scale, negated to maximize; of float16, which the scale keeps in range, wider."""
    if not isinstance(o.grad_factor, Tensor) and o.grad_factor == 1:
        return grads
    if isinstance(o.grad_factor, Tensor):
        grads = [g.float() if g.dtype == torch.float16 else g for g in grads]
    return list(torch._foreach_mul(grads, o.grad_factor))
