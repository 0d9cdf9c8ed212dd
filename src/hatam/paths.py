"""Which code path does a group's step: torch's AdamW, or the group's form for one tensor or for many at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw
from torch.optim.optimizer import Optimizer, _default_to_fused_or_foreach

from .forms import FORMS, real
from .update import Options, Scalar, State, kept


def raise_peak(group: dict[str, Any]) -> Scalar:
    """The largest lr so far, this step's included. It lives in the group, and so in checkpoints."""
    peak = group["lr_peak"] = peak_of_kind(group)
    if isinstance(peak, Tensor):
        peak.copy_(torch.maximum(kept(peak), group["lr"]))
        return kept(peak)
    group["lr_peak"] = max(peak, group["lr"])
    return group["lr_peak"]


def peak_of_kind(group: dict[str, Any]) -> Scalar:
    """``lr_peak`` as a tensor where lr is one, so that torch.compile sees no constant that changes."""
    lr, peak = group["lr"], group["lr_peak"]
    if isinstance(lr, Tensor):
        return peak if isinstance(peak, Tensor) else torch.full_like(lr, peak, requires_grad=False)
    return float(peak)


def real_state(state: State) -> State:
    """A state with its complex tensors as pairs of real numbers."""
    return {key: real(x) for key, x in state.items()}


def run_adamw(params: list[Tensor], grads: list[Tensor], state: dict[str, list[Tensor]], group: dict[str, Any]) -> None:
    """γ = 0: torch's own AdamW, so that it is the same to the last bit on every path."""
    adamw(
        params,
        grads,
        state["exp_avg"],
        state["exp_avg_sq"],
        [],
        state["step"],
        foreach=group["foreach"],
        capturable=group["capturable"],
        differentiable=group["differentiable"],
        fused=group["fused"],
        has_complex=any(p.is_complex() for p in params),
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=group["maximize"],
    )


def run_form(params: list[Tensor], grads: list[Tensor], states: list[State], group: dict[str, Any], o: Options) -> None:
    """Run the group's form, one tensor at a time or all tensors of a device and dtype together."""
    form = FORMS[group["form"]]
    foreach = group["foreach"]
    if foreach is None:
        _, foreach = _default_to_fused_or_foreach(params, group["differentiable"], use_fused=False)
        foreach = foreach and (group["capturable"] or not isinstance(group["lr"], Tensor))
    params, grads, states = [real(p) for p in params], [real(g) for g in grads], [real_state(s) for s in states]
    if not foreach:
        for param, grad, state in zip(params, grads, states, strict=True):
            form.single(param, -grad if o.maximize else grad, state, o)
        return
    columns: list[list[Tensor | None]] = [list(params)]
    batches = Optimizer._group_tensors_by_device_and_dtype(columns, with_indices=True)
    for _, indices in batches.values():
        chosen = [grads[i] for i in indices]
        if o.maximize:
            chosen = list(torch._foreach_neg(chosen))
        form.foreach([params[i] for i in indices], chosen, [states[i] for i in indices], o)
