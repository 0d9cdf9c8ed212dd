"""A group's options as a step uses them, with what the user left to form and radius filled in."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from .forms import FORMS
from .modulators import MODULATORS
from .radii import GROWTH, RADII, Start, needs_norm, needs_scale, pace, radius
from .update import Options, Scalar

DEFAULT_GAMMA = 1.0  # of the forms without a radius
MOST = 1e10  # times the mean of h: a displacement in a coordinate that looks sharper still


def resolve(
    group: Mapping[str, Any],
    lr_peak: Scalar,
    grad_scale: Scalar = None,
    found_inf: Tensor | None = None,
    start: Start | None = None,
) -> Options:
    """The options of a group for one step, with the defaults of its form filled in; ``start`` is of all groups."""
    form = FORMS[group["form"]]
    is_norm = needs_norm(group)
    lr, lr_peak = zero_dim(group["lr"]), zero_dim(lr_peak)
    beta1, beta2 = group["betas"]
    return Options(
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=group["eps"],
        weight_decay=group["weight_decay"],
        gamma=group["gamma"],
        beta_c=memory(group),
        modulator=MODULATORS[group["modulator"]],
        cap=cap(group),
        radius=0.0 if form.radius is None else radius(group, lr, lr_peak, start),
        scaled=form.radius is not None and needs_scale(group),
        grad_factor=(-1 if group["maximize"] else 1) / (1 if grad_scale is None else grad_scale),
        capturable=group["capturable"],
        form=group["form"],
        round_param=group["bf16_stochastic_round"],
        round_state=group["bf16_stochastic_round"] or group["state_dtype"] is not None,
        seed=group["seed"],
        found_inf=found_inf,
        growth=GROWTH if is_norm else math.inf,
        ramp=beta2 if is_norm else 0.0,
        pace=pace(group, lr_peak, start) if is_norm else math.inf,
    )


def cap(group: Mapping[str, Any]) -> float:
    """The modulator's, with the default of the form filled in; of a displacement never none, as ∞ / ∞ is no number."""
    form = FORMS[group["form"]]
    given = float(form.cap if group["modulator_cap"] is None else group["modulator_cap"])
    return given if form.radius is None else min(given, MOST)


def zero_dim(x: Scalar) -> Scalar:
    """A one-element tensor without its dimensions, so that it broadcasts to every parameter, 0-dim ones too."""
    return x.squeeze() if isinstance(x, Tensor) else x


def memory(group: Mapping[str, Any]) -> float:
    """βc, with the default of the form filled in."""
    own = FORMS[group["form"]].beta_c if group["beta_c"] is None else group["beta_c"]
    return float(group["betas"][0] if own is None else own)


def numbered(groups: Iterable[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Groups with the number of their first parameter among those of all, which random numbers depend on."""
    first = 0
    for group in groups:
        yield first, group
        first += len(group["params"])


def complete(group: dict[str, Any]) -> None:
    """Fill in the radius, its cap and the strength that the user left to form and radius."""
    if group["radius"] is None:
        group["radius"] = FORMS[group["form"]].radius
    if group["radius_cap"] is None and group["radius"] is not None:
        group["radius_cap"] = default_radius_cap(group) if group["gamma"] is None else math.inf
    if group["gamma"] is None:
        group["gamma"] = default_gamma(group)


def default_gamma(group: Mapping[str, Any]) -> float:
    """The strength unless the user gives one."""
    unit = group["radius"]
    return DEFAULT_GAMMA if unit is None else RADII[unit].default(memory(group), group["betas"][1])


def default_radius_cap(group: Mapping[str, Any]) -> float | None:
    """The cap of the radius, where there is one, unless the user gives it or the strength."""
    return None if group["radius"] is None else RADII[group["radius"]].cap


def name_of(group: Mapping[str, Any], i: int, j: int) -> str:
    """What messages call the j-th parameter of the i-th group."""
    return group["param_names"][j] if "param_names" in group else f"number {j} of group {i}"
