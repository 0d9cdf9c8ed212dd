"""Tensors of a group's step as columns, cached until something changes."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from operator import is_
from typing import Any, NamedTuple

from torch import Tensor

from . import state
from .fused.batches import Columns
from .update import State


class Part(NamedTuple):
    """Parameters that take the same step. The identity of the lists is the cache key of the kernels and of Shards."""

    places: slice  # of the gradients, in the order of Rows
    params: list[Tensor]
    columns: Columns  # their state
    numbers: list[int]
    reaches: bool


class Rows(NamedTuple):
    """Of a group: the parameters that have gradients, those with a reach first, with their states."""

    params: list[Tensor]
    numbers: list[int]  # of the parameters, among those of all groups
    columns: Columns

    def parts(self, begun: bool) -> list[Part]:
        """Those that have a reach now, and all others."""
        count = len(self.columns["reach"]) if begun else 0
        both = ((slice(0, count), state.STATE), (slice(count, len(self.params)), state.ADAMW_STATE))
        return [
            Part(
                places,
                self.params[places],
                {key: self.columns[key][places] for key in keys if self.columns[key]},
                self.numbers[places],
                keys is state.STATE,
            )
            for places, keys in both
            if places.start < places.stop
        ]


class Memory:
    """Cached rows and parts of a group, and what they were made from."""

    def __init__(
        self, rows: Rows, group: dict[str, Any], grads: list[Tensor | None], first: int, states: list[State]
    ) -> None:
        self.rows, self.asked, self.states = rows, asked(group, grads, first), states
        self.places = [number - first for number in rows.numbers]
        self.members, self.entries = list(group["params"]), entries(states)
        self.parts = {begun: rows.parts(begun) for begun in (False, True)}

    def holds(self, group: dict[str, Any], grads: list[Tensor | None], first: int) -> bool:
        """Whether parameters, presence of gradients, options and state tensors are unchanged.

        The caller has checked that the state dicts are the same objects.
        """
        return (
            self.asked == asked(group, grads, first)
            and same(group["params"], self.members)
            and same(entries(self.states), self.entries)
        )


def asked(group: dict[str, Any], grads: list[Tensor | None], first: int) -> Any:
    """Options and presence of gradients on which rows depend."""
    may_reach = group["gamma"] != 0 or group["begun"]
    return first, group["hidden"], may_reach, group["modulator"], [g is None for g in grads]


def entries(states: Iterable[State]) -> list[Any]:
    """The values of all states, in order."""
    return list(chain.from_iterable(map(dict.values, states)))


def same(some: Any, others: Any) -> bool:
    """Whether two collections hold the same objects."""
    return len(some) == len(others) and all(map(is_, some, others))
