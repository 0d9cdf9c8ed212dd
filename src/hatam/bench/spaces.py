"""Search ranges of options, as Optuna suggests them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import optuna


class Range(NamedTuple):
    """Numbers from ``low`` to ``high``, even in their logarithm unless ``log`` is False."""

    low: float
    high: float
    log: bool = True

    def suggest(self, trial: optuna.Trial, name: str) -> float:
        """Let the trial choose."""
        return trial.suggest_float(name, self.low, self.high, log=self.log)

    def params(self, name: str, value: float) -> dict[str, Any]:
        """How Optuna's parameters say that the option has this value."""
        return {name: value}


class Rate(NamedTuple):
    """Decay rates from ``low`` to ``high``, even in the logarithm of 1 − rate: of the memory's length.

    Optuna's parameter is 1 − rate, by the name ``1-NAME``.
    """

    low: float
    high: float

    def suggest(self, trial: optuna.Trial, name: str) -> float:
        """Let the trial choose."""
        return 1 - trial.suggest_float(f"1-{name}", 1 - self.high, 1 - self.low, log=True)

    def params(self, name: str, value: float) -> dict[str, Any]:
        """See :meth:`Range.params`."""
        return {f"1-{name}": 1 - value}


class Choices(NamedTuple):
    """Some values."""

    values: tuple[Any, ...]

    def suggest(self, trial: optuna.Trial, name: str) -> Any:
        """Let the trial choose."""
        return trial.suggest_categorical(name, self.values)

    def params(self, name: str, value: Any) -> dict[str, Any]:
        """See :meth:`Range.params`."""
        return {name: value}


class Factor(NamedTuple):
    """Numbers from the usual value divided by ``factor`` to the usual value times ``factor``."""

    factor: float

    def around(self, usual: float) -> Range:
        """The range around a usual value."""
        return Range(usual / self.factor, usual * self.factor)


Space: TypeAlias = Range | Rate | Choices | Factor


def choices(*values: Any) -> Choices:
    """:class:`Choices` of these values."""
    return Choices(values)


def nearest(each: Space, value: Any, otherwise: Any) -> Any:
    """The value of a range that is nearest to ``value``; of choices ``value`` if it is one of them, or ``otherwise``.

    Example:
        >>> nearest(Rate(0.5, 0.98), 0.0, 0.9), nearest(choices("cosine", "late"), "constant", "cosine")
        (0.5, 'cosine')
    """
    if isinstance(each, Range | Rate):
        return min(max(value, each.low), each.high)
    return value if isinstance(each, Choices) and value in each.values else otherwise


def suggest(trial: optuna.Trial, space: Mapping[str, Space]) -> dict[str, Any]:
    """The options that a trial chooses from a space without factors."""
    return {name: each.suggest(trial, name) for name, each in space.items() if not isinstance(each, Factor)}


def as_params(space: Mapping[str, Space], options: Mapping[str, Any]) -> dict[str, Any]:
    """Optuna's parameters for these options: what :func:`suggest` takes them from.

    Example:
        >>> as_params({"lr": Range(0.01, 1.0), "beta1": Rate(0.5, 0.98)}, {"lr": 0.1, "beta1": 0.75})
        {'lr': 0.1, '1-beta1': 0.25}
    """
    found: dict[str, Any] = {}
    for name, each in space.items():
        if not isinstance(each, Factor):
            found |= each.params(name, options[name])
    return found
