"""Checks of a checkpoint before it is loaded, and repair of the dtypes and devices that torch's loading changes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import _get_scalar_dtype

from . import arguments, fused, options
from .storage import MOMENTS, REACH_STATE, restore_dtypes

AMSGRAD = "max_exp_avg_sq"
REQUIRED = {"step", "exp_avg", "exp_avg_sq"}
NOT_OPTIONS = ("lr_peak", "reach_started", "evaluating")  # entries of a group that are not options
OLD = ("form", "radius", "beta_c", "exp_avg_grad", "displacement_radius")  # keys of versions before 0.1


def check(
    state: Mapping[Tensor, Mapping[str, Any]], groups: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]
) -> None:
    """Refuse state of HATAM or AdamW that does not fit its parameters, and groups with wrong options.

    Args:
        state: the state of each parameter.
        groups: parameter groups with their options.
        defaults: the values of options that a group lacks.

    Raises:
        TypeError, ValueError: an option is wrong, an entry of a state is missing or wrong, a moment has another shape
            than its parameter, or the state is AMSGrad's.
    """
    for i, group in enumerate(groups):
        options.check({**defaults, **group}, loaded=True)
        for j, p in enumerate(group["params"]):
            _check_state(state.get(p, {}), p, options.name_of(group, i, j))


def check_parts(state_dict: object, defaults: Mapping[str, Any]) -> None:
    """Refuse a state dict that lacks parts or has wrong ones, with a clearer message than torch's.

    Raises:
        TypeError, ValueError: a part is missing or of another type, or an option is wrong.
    """
    remedy = "pass a result of optimizer.state_dict()"
    if not isinstance(state_dict, Mapping) or not {"state", "param_groups"} <= state_dict.keys():
        raise TypeError(f"state_dict must have 'state' and 'param_groups', unlike {state_dict!r:.60}; {remedy}")
    state, groups = state_dict["state"], state_dict["param_groups"]
    if not isinstance(state, Mapping) or any(
        isinstance(key, int) and not isinstance(own, Mapping) for key, own in state.items()
    ):
        raise TypeError(f"state_dict['state'] must map parameter indices to states; {remedy}")
    if not isinstance(groups, list) or not all(
        isinstance(g, Mapping) and isinstance(g.get("params"), list) for g in groups
    ):
        raise TypeError(f"state_dict['param_groups'] must be a list of groups, each with a list 'params'; {remedy}")
    for found in (*groups, *(own for own in state.values() if isinstance(own, Mapping))):
        if old := [key for key in OLD if key in found]:
            raise ValueError(f"the checkpoint has {old[0]!r}: it is of a HATAM before 0.1; load its weights only")
    for group in groups:
        options.check({**defaults, **group}, loaded=True)
        _check_number("lr_peak", group.get("lr_peak", 0.0), "a parameter group")
        for key in ("reach_started", "evaluating"):
            arguments.check_flag(key, group.get(key, False))


def detach_peaks_(saved: dict[str, Any]) -> dict[str, Any]:
    """Detach every ``lr_peak``, in place. If lr requires a gradient, its peak has a graph and cannot be copied."""
    for group in saved["param_groups"]:
        if isinstance(group.get("lr_peak"), Tensor):
            group["lr_peak"] = group["lr_peak"].detach()
    return saved


def without_leftovers(saved: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint without outdated scalars of HATAM. AdamW saves those that it was given, but does not update them.

    AdamW's groups have ``amsgrad``, and HATAM's do not.
    """
    adamws = {i for group in saved["param_groups"] if "amsgrad" in group for i in group["params"]}
    state = {
        i: {key: x for key, x in found.items() if key not in REACH_STATE} if i in adamws else found
        for i, found in saved["state"].items()
    }
    return {**saved, "state": state}


def check_counts(saved: Sequence[Mapping[str, Any]], groups: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a checkpoint whose groups have other sizes than the optimizer's.

    Raises:
        ValueError: the number of groups differs, or the number of parameters in one of them.
    """
    theirs, own = ([len(group["params"]) for group in each] for each in (saved, groups))
    if theirs != own:
        raise ValueError(
            f"the checkpoint has parameter groups of {theirs} tensors, the optimizer of {own}: a different number of "
            "parameter groups, or of parameters in them; divide the parameters as in the checkpoint"
        )


def _check_state(found: Mapping[str, Any], p: Tensor, name: str) -> None:
    if AMSGRAD in found:
        raise ValueError(
            f"the checkpoint is of an AdamW with amsgrad=True, which HATAM does not support: parameter {name} has "
            f"{AMSGRAD!r}; delete it from every parameter's state to continue without AMSGrad"
        )
    if found and not found.keys() >= REQUIRED:
        raise ValueError(
            f"the checkpoint's state of parameter {name} has {', '.join(map(repr, found))} but must have "
            f"{', '.join(map(repr, sorted(REQUIRED)))}; load a checkpoint of HATAM or AdamW"
        )
    if "step" in found:
        _check_number("step", found["step"], f"parameter {name}")
    for key in found.keys() & {*REACH_STATE}:
        if not isinstance(found[key], Tensor) or found[key].numel() != 1:
            raise TypeError(f"{key!r} of parameter {name} must be a tensor of one number, not {found[key]!r:.60}")
    for key in found.keys() & {*MOMENTS}:
        if not isinstance(found[key], Tensor) or found[key].dtype.is_complex != p.dtype.is_complex:
            raise TypeError(f"{key!r} of parameter {name} must be a tensor like the parameter, not {found[key]!r:.60}")
        if found[key].shape != p.shape:
            raise ValueError(
                f"{key!r} of parameter {name} has shape {tuple(found[key].shape)} in the checkpoint but must have the "
                f"parameter's, {tuple(p.shape)}; load the checkpoint of the same model"
            )


def _check_number(key: str, value: Any, owner: str) -> None:
    """Refuse what is not a finite number >= 0, or a tensor of one."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = 0.0 if value.is_meta else value.item()
    remedy = "load a checkpoint of HATAM or AdamW"
    arguments.check_number(f"{key!r} of {owner}", value, 0.0, math.inf, open_end=True, remedy=remedy)


def merged_group(group: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """A saved group. Options that it lacks come from the present group; entries of ``NOT_OPTIONS`` do not."""
    kept = group.keys() - {"params", "param_names", *NOT_OPTIONS}
    return {**{key: group[key] for key in kept}, **saved}


@contextmanager
def loading(optimizer: Any) -> Iterator[None]:
    """Inside, ``load_state_dict`` refuses what does not fit, and restores saved dtypes before the user's post-hooks."""
    loaded: list[dict[str, Any]] = []

    def pre_hook(_: object, changed: dict[str, Any]) -> dict[str, Any]:  # runs after the user's pre-hooks
        check_parts(changed, optimizer.defaults)
        check_counts(changed["param_groups"], optimizer.param_groups)
        changed = without_leftovers(changed)
        both = zip(optimizer.param_groups, changed["param_groups"], strict=True)
        loaded.append({**changed, "param_groups": [merged_group(*each) for each in both]})
        return loaded[-1]

    def post_hook(_: object) -> None:
        restore(optimizer.state, optimizer.param_groups, loaded[-1])

    hooks = (
        optimizer.register_load_state_dict_pre_hook(pre_hook),
        optimizer.register_load_state_dict_post_hook(post_hook, prepend=True),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def restore(state: Mapping[Tensor, dict[str, Any]], groups: Sequence[dict[str, Any]], saved: Mapping[str, Any]) -> None:
    """Restore the dtypes of the checkpoint and the device of ``step``, which torch's loading has changed."""
    params = [(group, p) for group in groups for p in group["params"]]
    saved_ids = [i for group in saved["param_groups"] for i in group["params"]]
    for (group, p), saved_id in zip(params, saved_ids, strict=True):
        own = state.get(p)
        if not own:
            continue
        if "step" in own:
            if not isinstance(own["step"], Tensor):  # saved by an early version of torch as a number
                own["step"] = torch.tensor(float(own["step"]), dtype=_get_scalar_dtype())
            own["step"] = own["step"].to(p.device if fused.keeps_step_on_device(group, p) else "cpu", copy=True)
        restore_dtypes(own, saved["state"].get(saved_id, {}), p, group["state_dtype"])
