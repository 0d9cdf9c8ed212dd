"""The three forms of HATAM as objects: what state a form adds to AdamW's, its defaults, and its two code paths.

"decoupled"
    The default. The gradient is taken at w = z − d, displaced from the straightened point z along e by a radius ρ_t
    that outlives the learning rate; the moments see the raw gradient, as AdamW decoupled weight decay from both.
"raw"
    The gradient is corrected, ĝ = g + γ S c, and v is built from g, so that S does not depend on its own correction.
"published"
    The pseudocode of the source document, to the last rounding: v is built from ĝ and S has no cap.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import foreach, sharded, storage, update
from .update import Options, State

PUBLISHED_FORM: dict[str, Any] = {"form": "published", "modulator": "relative", "gamma": 1.0, "beta_c": 0.9}
"""Options of the source document's pseudocode: ``HATAM(params, lr, **PUBLISHED_FORM)``.

The document gives γ and βc no number; 1.0 and 0.9 are this library's.
"""


@dataclass(frozen=True)
class Form:
    """One way to use the bend of the trajectory.

    Attributes:
        stages: of the update of one tensor.
        foreach: all of them for lists of tensors.
        prepare: adds to a group's states what the form needs beyond AdamW's, ``prepare(states, params, options)``.
        cap: the modulator's cap unless the user gives one.
        beta_c: the rate of e unless the user gives one; None means β1, so that e is m.
        radius: the unit of its radius unless the user gives one; None where it has no radius.
    """

    stages: update.Stages
    foreach: Callable[[list[Tensor], list[Tensor], list[State], Options], None]
    prepare: Callable[[list[State], list[Tensor], Options], None]
    cap: float
    beta_c: float | None
    radius: str | None


def scalar(value: float, param: Tensor, device: torch.device | None = None) -> Tensor:
    """A 0-dim state tensor, at least as precise as float32."""
    dtype = torch.float64 if param.dtype in (torch.float64, torch.complex128) else torch.float32
    return torch.full((), value, dtype=dtype, device=device or param.device)


def prepare_decoupled(states: list[State], params: list[Tensor], o: Options) -> None:
    """e only where it is not m; no displacement and, as mean(h_0) does not exist, an infinite mean: S_1 = 0."""
    own = o.beta_c != o.beta1 or any("exp_avg_grad" in state for state in states)
    scaled = o.scaled or any("displacement_scale" in state for state in states)
    for state, param in zip(states, params, strict=True):
        if own and "exp_avg_grad" not in state:
            state["exp_avg_grad"] = storage.copied(state["exp_avg"])  # they were the same so far
        if "displacement_radius" not in state:
            state["displacement_radius"] = scalar(0.0, param, state["step"].device)
        if scaled and "displacement_scale" not in state:
            state["displacement_scale"] = scalar(0.0, param)
        for key in ("denom_mean", "displacement_mean"):
            if not o.modulator.needs_mean:
                state.pop(key, None)  # which nothing keeps up
            elif key not in state:
                state[key] = scalar(math.inf, param)


def prepare_corrected(states: list[State], params: list[Tensor], o: Options) -> None:
    """e = EMA(g): m is the best guess for it in a run that began as AdamW. The mean is that of the present v.

    Where another form has displaced a parameter, it stays where it is: nothing undoes that any more.
    """
    for state, param in zip(states, params, strict=True):
        if "displacement_radius" in state:
            state["displacement_radius"].zero_()
        if "exp_avg_grad" not in state:
            state["exp_avg_grad"] = storage.copied(state["exp_avg"])
        if not o.modulator.needs_mean:
            state.pop("denom_mean", None)  # which nothing keeps up
        elif "denom_mean" not in state:
            v = storage.widened(real(sharded.local(state["exp_avg_sq"])), storage.arithmetic(param.dtype.to_real()))
            h = update.denominator(v, state["step"], o)
            whole = (
                sharded.mean_of_whole(h, param, state["step"], o)
                if sharded.is_cut(param)
                else h.mean(dtype=torch.float64)
            )
            mean = update.next_mean(whole, torch.zeros_like(whole), h.dtype, o)  # float64: alike on any threads
            state["denom_mean"] = mean.to(scalar(0.0, param).dtype)


def displaced(state: State, o: Options) -> bool:
    """Whether the form's next step would undo a displacement that a parameter with this state has.

    Not after a change of options that makes it last: to a form without one, or to a modulator with a mean, which is
    infinite where it was not kept.
    """
    knows = "displacement_mean" in state or not o.modulator.needs_mean
    return FORMS[o.form].radius is not None and "displacement_radius" in state and knows


def real(x: Tensor) -> Tensor:
    """A complex tensor as pairs of real numbers, as AdamW treats it."""
    return torch.view_as_real(x) if x.is_complex() else x


FORMS: dict[str, Form] = {
    "decoupled": Form(
        stages=update.DECOUPLED,
        foreach=foreach.decoupled_,
        prepare=prepare_decoupled,
        cap=1.0,
        beta_c=None,
        radius="absolute",
    ),
    "raw": Form(
        stages=update.RAW,
        foreach=partial(foreach.corrected_, raw=True),
        prepare=prepare_corrected,
        cap=3.0,
        beta_c=0.9,
        radius=None,
    ),
    "published": Form(
        stages=update.PUBLISHED,
        foreach=partial(foreach.corrected_, raw=False),
        prepare=prepare_corrected,
        cap=math.inf,
        beta_c=0.9,
        radius=None,
    ),
}
