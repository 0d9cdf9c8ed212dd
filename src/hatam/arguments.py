"""Checks of single arguments. Each error message names the argument, its value, its range and a remedy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any, cast

from torch import Tensor
from torch.optim.optimizer import ParamsT


def check_lr(lr: object) -> None:
    """Raise unless lr is a number in [0, inf), or a tensor of one such element."""
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"lr as a tensor must have one element, not shape {tuple(lr.shape)}")
        if lr.device.type == "meta":
            return
        lr = lr.item()
    check_number("lr", lr, 0.0, math.inf, open_end=True, remedy="start from AdamW's lr, often 1e-3")


def check_betas(betas: object) -> None:
    """Raise unless betas is a pair of numbers in [0, 1)."""
    if isinstance(betas, str) or not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"betas must be a pair of floats such as (0.9, 0.95), not {betas!r}; pass a tuple")
    check_number("betas[0]", betas[0], 0.0, 1.0, open_end=True, remedy="the default is 0.9")
    check_number("betas[1]", betas[1], 0.0, 1.0, open_end=True, remedy="the default is 0.95")


def check_number(
    name: str,
    value: object,
    low: float,
    high: float,
    *,
    remedy: str,
    open_start: bool = False,
    open_end: bool = False,
) -> None:
    """Raise unless ``value`` is a real number in a range. NaN is in no range."""
    interval = f"{'(' if open_start else '['}{low:g}, {high:g}{')' if open_end else ']'}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f"{name} must be a number in {interval}, not {value!r} of type {type(value).__name__}; {remedy}"
        )
    try:
        x = float(value)
    except OverflowError:  # an integer too large for a float
        x = math.nan
    above = x > low if open_start else x >= low
    below = x < high if open_end else x <= high
    if not (above and below):
        raise ValueError(f"{name}={value!r} is out of range: it must be in {interval}; {remedy}")


def check_integer(name: str, value: object, high: int) -> None:
    """Raise unless ``value`` is an integer in [0, ``high``)."""
    interval = f"[0, 2**{high.bit_length() - 1})"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer in {interval}, not {value!r} of type {type(value).__name__}")
    if not 0 <= value < high:
        raise ValueError(f"{name}={value!r} is out of range: it must be in {interval}")


def check_choice(name: str, value: object, choices: Mapping[str, object]) -> None:
    """Raise unless ``value`` is a key of ``choices``."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {value!r} of type {type(value).__name__}")
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown: it must be one of {', '.join(map(repr, choices))}")


def check_flag(name: str, value: object, *, optional: bool = False) -> None:
    """Raise unless ``value`` is True or False, or None if ``optional``."""
    if not (isinstance(value, bool) or (optional and value is None)):
        allowed = "True, False or None" if optional else "True or False"
        raise TypeError(f"{name} must be {allowed}, not {value!r} of type {type(value).__name__}")


def as_list(params: ParamsT) -> ParamsT:
    """Return the parameters as a list. Raise if it is empty. torch raises its own errors for other wrong arguments."""
    if isinstance(params, (Tensor, dict)) or not isinstance(params, Iterable):
        return params
    listed: Any = list(params)
    if not listed:
        raise ValueError("params is empty; pass model.parameters() of a model that has parameters")
    return cast(ParamsT, listed)


def check_params(params: list[Any]) -> None:
    """Raise if a parameter is listed twice. torch only warns, but nobody wants two updates of it in one step."""
    seen: dict[int, int] = {}
    for index, param in enumerate(params):
        first = seen.setdefault(id(param), index)
        if first != index:
            raise ValueError(
                f"params: number {index} of a parameter group is the same tensor as number {first}; list each "
                "parameter once, as module.parameters() does"
            )
