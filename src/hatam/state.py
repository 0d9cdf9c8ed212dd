"""What the state of a parameter holds beside AdamW's, who has it, and how it is made."""

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
from .storage import MOMENTS, SCALARS, new_moment
from .update import Options, State

ADAMW_STATE = ("step", *MOMENTS)
STATE = (*ADAMW_STATE, *SCALARS)

INITIAL_SCALARS = {"reach": 0.0, "rms_ratio": 0.0, "path_length": 0.0}
INITIAL_MEANS = {"denom_mean": math.inf, "reach_mean": math.inf}
"""The scalars before the first step. There is no mean yet, and with an infinite one S is 0."""

EMBEDDINGS = {"tokens", "positions", "places", "wte", "wpe", "lm_head"}
"""Parts of names of parameters that are no hidden weights in spite of their dimensions; "embed" in a part
counts too."""


def is_hidden(param: Tensor, name: str) -> bool:
    """Whether a parameter is a hidden weight: of two dimensions or more, and by its name no embedding."""
    if is_lazy(param):
        return False  # until it has a shape
    parts = name.lower().split(".")
    return param.dim() >= 2 and not any(part in EMBEDDINGS or "embed" in part for part in parts)


def hidden_flags(group: Mapping[str, Any]) -> list[bool]:
    """Which parameters of a group have a reach: as its option ``hidden`` says, else by shape and name."""
    if group["hidden"] is not None:
        return [group["hidden"]] * len(group["params"])
    names = chain(group.get("param_names", ()), repeat(""))  # those that were appended since have none
    return [is_hidden(p, name) for p, name in zip(group["params"], names, strict=False)]


def init_adamw_state(state: State, param: Tensor, group: Mapping[str, Any]) -> None:
    """AdamW's state before the first step."""
    device_index = fused.keeps_step_on_device(group, param)
    dtype = torch.float32 if device_index else _get_scalar_dtype()
    state["step"] = torch.zeros((), dtype=dtype, device=param.device if device_index else "cpu")
    for key in MOMENTS:
        state[key] = new_moment(param, key, group["state_dtype"])


def complete_state(state: State, param: Tensor, group: Mapping[str, Any], modulator: Modulator | None) -> State:
    """A state with all that a step needs: AdamW's part, and the scalars of the reach where there is a modulator.

    The means exist only for a modulator that needs them; another one would leave them stale.
    """
    if "step" not in state:
        init_adamw_state(state, param, group)
    if modulator is None:
        return state
    for key, value in INITIAL_SCALARS.items():
        if key not in state:
            state[key] = scalar(value, param)
    if not modulator.needs_mean and "reach_mean" in state:
        state["reach"].zero_()  # of an offset that the modulator before has made
    for key, value in INITIAL_MEANS.items():
        if not modulator.needs_mean:
            state.pop(key, None)
        elif key not in state:
            state[key] = scalar(value, param)
    return state


def drop_scalars(states: Mapping[Tensor, State], params: Iterable[Tensor]) -> None:
    """Delete the scalars of a reach from the states of parameters."""
    for p in params:
        for key in SCALARS:
            states.get(p, {}).pop(key, None)


def scalar(value: float, param: Tensor) -> Tensor:
    """A 0-dim state tensor, at least as precise as float32."""
    dtype = torch.float64 if param.dtype in (torch.float64, torch.complex128) else torch.float32
    return torch.full((), value, dtype=dtype, device=param.device)


def has_offset(state: State, o: Options) -> bool:
    """Whether the next step undoes an offset of this state, which may be 0.

    Not after a change of the modulator: the old offset stays in the parameter.
    """
    return "reach" in state and ("reach_mean" in state) == o.modulator.needs_mean


def real(x: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, as AdamW treats it."""
    return torch.view_as_real(x) if x.is_complex() else x


def real_state(state: State) -> State:
    """A state with its complex tensors as pairs of real numbers; other entries are unchanged."""
    return {key: real(x) if isinstance(x, Tensor) else x for key, x in state.items()}


def real_grads(grads: list[Tensor]) -> list[Tensor]:
    """Gradients the same, with autograd's lazy conjugation resolved."""
    return [real(g.resolve_conj()) for g in grads]
