"""The state of a parameter: its entries, the parameters that have a reach, and how entries are initialized."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from itertools import chain, repeat
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import _get_scalar_dtype

from . import fused
from .modulators import Modulator
from .storage import MOMENTS, REACH_STATE, new_moment
from .update import Options, State

ADAMW_STATE = ("step", *MOMENTS)
STATE = (*ADAMW_STATE, *REACH_STATE)

INITIAL_SCALARS = {"reach": 0.0, "rms_ratio": 0.0, "path_length": 0.0}
INITIAL_MEANS = {"denom_mean": math.inf, "reach_mean": math.inf}
"""The values before the first step. There is no mean yet; an infinite mean makes S = 0."""

EMBEDDINGS = {"tokens", "positions", "places", "wte", "wpe", "lm_head"}
"""Parts of parameter names that mark an embedding, which is not a hidden weight. A part that contains "embed" also
marks one."""


def is_hidden(param: Tensor, name: str) -> bool:
    """Return whether a parameter is a hidden weight: it has two or more dimensions and no name of an embedding."""
    if is_lazy(param):
        return False  # it has no shape yet
    return param.dim() >= 2 and not is_embedding(name)


def is_embedding(name: str) -> bool:
    """Return whether a parameter name, whose parts are divided by dots, has a part that marks an embedding."""
    return any(part in EMBEDDINGS or "embed" in part for part in name.lower().split("."))


def hidden_flags(group: Mapping[str, Any]) -> list[bool]:
    """Return for each parameter of a group whether it has a reach: by the option ``hidden``, else by shape and name."""
    if group["hidden"] is not None:
        return [group["hidden"]] * len(group["params"])
    names = chain(group.get("param_names", ()), repeat(""))  # parameters that were appended to the group have no name
    return [is_hidden(p, name) for p, name in zip(group["params"], names, strict=False)]


def init_adamw_state(state: State, param: Tensor, group: Mapping[str, Any]) -> None:
    """Add AdamW's state before the first step to ``state``."""
    on_device = fused.keeps_step_on_device(group, param)
    dtype = torch.float32 if on_device else _get_scalar_dtype()
    state["step"] = torch.zeros((), dtype=dtype, device=param.device if on_device else "cpu")
    for key in MOMENTS:
        state[key] = new_moment(param, key, group["state_dtype"])


def complete_state(state: State, param: Tensor, group: Mapping[str, Any], modulator: Modulator | None) -> State:
    """Add all missing entries to ``state`` and return it: AdamW's, and with a ``modulator`` the scalars of the reach.

    The means exist only if the modulator needs them, because no other modulator updates them.
    """
    if "step" not in state:
        init_adamw_state(state, param, group)
    if modulator is None:
        return state
    for key, value in INITIAL_SCALARS.items():
        if key not in state:
            state[key] = scalar(value, param)
    if not modulator.needs_mean and "reach_mean" in state:
        state["reach"].zero_()  # its offset is the previous modulator's; undoing it with this one would be wrong
    for key, value in INITIAL_MEANS.items():
        if not modulator.needs_mean:
            state.pop(key, None)
        elif key not in state:
            state[key] = scalar(value, param)
    return state


def drop_scalars(states: Mapping[Tensor, State], params: Iterable[Tensor]) -> None:
    """Delete the scalars of the reach from the states of ``params``."""
    for p in params:
        for key in REACH_STATE:
            states.get(p, {}).pop(key, None)


def scalar(value: float, param: Tensor) -> Tensor:
    """Return a 0-dim state tensor in float32, or in float64 for a float64 or complex128 parameter."""
    dtype = torch.float64 if param.dtype in (torch.float64, torch.complex128) else torch.float32
    return torch.full((), value, dtype=dtype, device=param.device)


def has_offset(state: State, o: Options) -> bool:
    """Return whether the next step undoes an offset of this state. The offset may be 0.

    After a change of the modulator it undoes none: the old offset stays in the parameter.
    """
    return "reach" in state and ("reach_mean" in state) == o.modulator.needs_mean


def real(x: Tensor) -> Tensor:
    """Return a complex tensor as pairs of real numbers, as AdamW does, and a real tensor unchanged."""
    return torch.view_as_real(x) if x.is_complex() else x


def real_state(state: State) -> State:
    """Return a state with its complex tensors as pairs of real numbers. Other entries are unchanged."""
    return {key: real(x) if isinstance(x, Tensor) else x for key, x in state.items()}


def real_grads(grads: list[Tensor]) -> list[Tensor]:
    """Return gradients with their complex tensors as pairs of real numbers, and with lazy conjugation resolved."""
    return [real(g.resolve_conj()) for g in grads]
