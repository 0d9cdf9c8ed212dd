"""Stage "sensitivity": one option of the winner is changed at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SCALED = ("lr", "gamma", "travel", "horizon", "fade", "rho")
"""Options that are multiplied by a factor; of ``beta_c`` it is the time constant 1 / (1 − βc)."""


def explicit(options: Mapping[str, Any]) -> dict[str, float]:
    """The options that can be changed; those without effect left out.

    Example:
        >>> explicit({"lr": 0.1, "gamma": 0.0, "beta1": 0.9, "beta_c": 0.9, "modulator": "uniform"})
        {'lr': 0.1, 'beta_c': 0.9}
    """
    values = {name: options.get(name) for name in (*SCALED, "beta_c")}
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, (int, float)) and 0 < value < float("inf")
    }


def variations(options: Mapping[str, Any], factors: Sequence[float]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What is changed, and the complete options with that change; a value out of its range is left out.

    Example:
        >>> [changed for changed, _ in variations({"lr": 0.1, "rho": 0.5}, [0.5, 2.0])]
        [{'lr': 0.05}, {'lr': 0.2}, {'rho': 0.25}, {'rho': 1.0}]
    """
    found = []
    for name, value in explicit(options).items():
        for factor in factors:
            new = 1 - (1 - value) / factor if name == "beta_c" else value * factor
            if (name == "beta_c" and new < 0) or (name == "fade" and new > 1):
                continue
            found.append(({name: new}, {**options, name: new}))
    return found
