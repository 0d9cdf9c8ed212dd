"""What a loaded checkpoint must be like, looked at before anything has changed, and what loading must not change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from . import fused, options
from .storage import MOMENTS, restore_dtypes

AMSGRAD = "max_exp_avg_sq"


def check(
    state: Mapping[Tensor, Mapping[str, Any]], groups: Sequence[Mapping[str, Any]], defaults: Mapping[str, Any]
) -> None:
    """Refuse state and parameter groups that do not fit, of HATAM or of AdamW.

    Args:
        state: of each parameter.
        groups: with their parameters and options; what they lack is filled in.
        defaults: what with.

    Raises:
        TypeError, ValueError: a moment has another shape than its parameter, the state is AMSGrad's, or an option is
            not one of this version's.
    """
    for i, group in enumerate(groups):
        options.check({**defaults, **group})
        for j, p in enumerate(group["params"]):
            _check_state(state.get(p, {}), p, options.name_of(group, i, j))


def _check_state(found: Mapping[str, Any], p: Tensor, name: str) -> None:
    if AMSGRAD in found:
        raise ValueError(
            f"the checkpoint is that of an AdamW with amsgrad=True, which HATAM does not have: parameter {name} has "
            f"{AMSGRAD!r}; remove it from every parameter's state to go on without"
        )
    for key in found.keys() & {*MOMENTS}:
        if found[key].shape != p.shape:
            raise ValueError(
                f"{key!r} of parameter {name} has shape {tuple(found[key].shape)} in the checkpoint and must have the "
                f"parameter's, {tuple(p.shape)}; load the checkpoint of the same model"
            )


def restore(state: Mapping[Tensor, dict[str, Any]], groups: Sequence[dict[str, Any]], saved: Mapping[str, Any]) -> None:
    """Put back what torch's loading has cast and moved: the dtypes of the checkpoint, and the device of the count."""
    params = [(group, p) for group in groups for p in group["params"]]
    saved_ids = [i for group in saved["param_groups"] for i in group["params"]]
    for (group, p), saved_id in zip(params, saved_ids, strict=True):
        own = state[p]
        if "step" in own:
            own["step"] = own["step"].to(p.device if fused.counts_on_device(group, p) else "cpu")
        restore_dtypes(own, saved["state"].get(saved_id, {}), p)
