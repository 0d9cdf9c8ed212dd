"""What is tuned, and within which ranges: ``spaces.toml``, checked, as distributions for Optuna."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution

from .builders import Options
from .contenders import CONTENDERS, known, parse
from .tasks import all_tasks

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PATH = Path(__file__).with_name("spaces.toml")
Ranges = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Layer:
    """Ranges by option, for all contenders that have the option and for single ones."""

    shared: Ranges = field(default_factory=dict)
    contender: Mapping[str, Ranges] = field(default_factory=dict)


@dataclass(frozen=True)
class Spaces:
    """The file: a layer for every task, and one more for some."""

    base: Layer
    by_task: Mapping[str, Layer]

    def ranges(self, contender: str, task: str) -> dict[str, Mapping[str, Any]]:
        """A contender's options on a task with their ranges; the more special ones win."""
        layers = [self.base, self.by_task.get(task, Layer())]
        own = CONTENDERS[contender].every
        shared = {option: r for layer in layers for option, r in layer.shared.items() if option in own}
        return shared | {option: r for layer in layers for option, r in layer.contender.get(contender, {}).items()}


def space(contender: str, task: str, path: Path = PATH) -> dict[str, BaseDistribution]:
    """What is tuned of a contender on a task.

    Args:
        contender: its name.
        task: its name; one that the file does not mention, such as a task of your own, has the ranges for all.
        path: the file with the ranges.

    Raises:
        ValueError: there is no such contender, or the file is not valid.

    Example:
        >>> sorted(space("sam", "mnist1d-mlp"))
        ['beta1', 'lr', 'rho', 'weight_decay']
        >>> space("sam", "mnist1d-mlp")["rho"]
        FloatDistribution(high=2.0, log=True, low=0.01, step=None)
    """
    ranges = load(path).ranges(known(contender, CONTENDERS, "contender"), task)
    return {option: _distribution(r) for option, r in ranges.items()}


def complete(contender: str, task: str, params: Mapping[str, Any]) -> Options:
    """All options of a contender on a task: those of a trial, and the defaults of the others.

    Raises:
        ValueError: ``params`` has an option that is not tuned there.

    Example:
        >>> options = complete("adamw", "mnist1d-mlp", {"lr": 0.01, "beta1": 0.9, "weight_decay": 0.1})
        >>> options["lr"], options["beta2"]
        (0.01, 0.95)
    """
    tuned = space(contender, task)
    for option in params:
        known(option, tuned, f"tuned option of {contender}")
    return CONTENDERS[contender].recorded({**parse(contender, task)[1], **params})


@cache
def load(path: Path = PATH) -> Spaces:
    """The file, checked from end to end.

    Raises:
        ValueError: something in it is wrong; the message names file, contender, option, value and remedy.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
        families = content.pop("family", [])
        spaces = Spaces(_layer(content, ""), dict(_by_task(families)))
        for contender in CONTENDERS:
            if contender not in spaces.base.contender:
                raise ValueError(f"there is no table [contender.{contender}]; add one, empty if it has no own ranges")
            _check_defaults(spaces, contender)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return spaces


def _by_task(families: list[dict[str, Any]]) -> Iterator[tuple[str, Layer]]:
    seen: set[str] = set()
    for family in families:
        tasks = _table(family, "a [[family]]", "shared", "contender", "tasks").pop("tasks", None)
        if not isinstance(tasks, list) or not tasks:
            raise ValueError(f'tasks = {tasks!r} in a [[family]] must be a list of names such as ["digits"]')
        layer = _layer(family, f" on {', '.join(tasks)}")
        for task in tasks:
            known(task, all_tasks(), "task of a [[family]]")
            if task in seen:
                raise ValueError(f"task {task!r} is in two families; keep it in one")
            seen.add(task)
            yield task, layer


def _layer(tables: dict[str, Any], where: str) -> Layer:
    """A layer with each of its entries checked by itself; ``where`` names its tasks in messages."""
    layer = Layer(**_table(tables, "the file" + where, "shared", "contender"))
    anyones = {option for contender in CONTENDERS.values() for option in contender.every}
    _check_ranges("[shared]" + where, layer.shared, anyones)
    for name, ranges in layer.contender.items():
        _check_ranges(name + where, ranges, CONTENDERS[known(name, CONTENDERS, "contender")].every)
    return layer


def _check_ranges(owner: str, ranges: Ranges, options: Iterable[str]) -> None:
    for option, r in _table(ranges, owner, *sorted(options)).items():
        problem = _problem(r)
        if problem:
            raise ValueError(f"{owner}, {option} = {r}: {problem}")


def _table(value: Any, owner: str, *keys: str) -> dict[str, Any]:
    """``value`` if it is a table with no other keys than these."""
    if not isinstance(value, dict):
        raise ValueError(f"{owner} must be a table, not {value!r}")
    for key in value:
        known(key, keys, f"option of {owner}")
    return value


def _problem(r: Mapping[str, Any]) -> str | None:
    """What is wrong with a range, if anything is."""
    if not isinstance(r, dict) or not (set(r) == {"choices"} or {"low", "high"} <= set(r) <= {"low", "high", "log"}):
        return "a range is { low = …, high = …, log = true } or { choices = […] }"
    if "choices" in r:
        if not isinstance(r["choices"], list) or not r["choices"]:
            return "choices must be a list of at least one value; remove the entry to keep the default"
        return None
    for bound in (r["low"], r["high"]):
        if isinstance(bound, bool) or not isinstance(bound, (int, float)) or not math.isfinite(bound):
            return f"{bound!r} is not a finite number; use choices for anything else"
    if not isinstance(r.get("log", False), bool):
        return f"log={r['log']!r} must be true or false"
    if r["low"] >= r["high"]:
        return f"low={r['low']} must be below high={r['high']}; a single value is choices = [{r['low']}]"
    if r.get("log") and r["low"] <= 0:
        return f"low={r['low']} must be in (0, high) where log = true; raise it or use log = false"
    return None


def _check_defaults(spaces: Spaces, contender: str) -> None:
    """A default that cannot be found again would make tuning a loss. None leaves the value to HATAM's form."""
    entry = CONTENDERS[contender]
    for task, defaults in {"": entry.every, **entry.by_task}.items():
        for option, r in spaces.ranges(contender, task).items():
            value = defaults.get(option)
            if value is not None and not _contains(r, value):
                where = f" on {task}" if task else ""
                raise ValueError(
                    f"{contender}, {option}: its default{where}, {value!r}, is outside {r}; widen the range or change "
                    "the default"
                )


def _contains(r: Mapping[str, Any], value: Any) -> bool:
    return value in r["choices"] if "choices" in r else r["low"] <= value <= r["high"]


def _distribution(r: Mapping[str, Any]) -> BaseDistribution:
    if "choices" in r:
        return CategoricalDistribution(r["choices"])
    return FloatDistribution(r["low"], r["high"], log=r.get("log", False))
