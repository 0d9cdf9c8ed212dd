"""Tensors of a group's step as columns, cached until something changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from itertools import chain
from operator import is_
from typing import Any

from torch import Tensor

from . import state
from .fused.batches import BatchPlan, Columns
from .modulators import MODULATORS
from .update import State


class Subset:
    """Parameters that take the same step, with their state in columns.

    Attributes:
        grad_places: of their gradients among those of :class:`Gathered`.
        params: the parameters.
        state: one list for each key of the state.
        param_indices: their places among the parameters of all groups.
        plan: what the fused kernels know of these tensors.
        shards: the local tensors, where a parameter is a DTensor.
    """

    def __init__(self, grad_places: slice, params: list[Tensor], state: Columns, param_indices: list[int]) -> None:
        self.grad_places, self.params, self.state, self.param_indices = grad_places, params, state, param_indices
        self.plan: BatchPlan | None = None
        self.shards: Any = None

    @property
    def has_reach(self) -> bool:
        """Whether these parameters have an offset."""
        return "reach" in self.state


class Gathered:
    """Of a group: the parameters that have gradients, those with a reach first, with their state."""

    def __init__(self) -> None:
        self.params: list[Tensor] = []
        self.grads: list[Tensor] = []  # of this step
        self.param_indices: list[int] = []
        self.state: Columns = {key: [] for key in state.STATE}
        self._subsets: dict[bool, list[Subset]] = {}

    def subsets(self, reach_started: bool) -> list[Subset]:
        """The parameters that have a reach now, and all others."""
        if reach_started not in self._subsets:
            count = len(self.state["reach"]) if reach_started else 0
            both = ((slice(0, count), state.STATE), (slice(count, len(self.params)), state.ADAMW_STATE))
            self._subsets[reach_started] = [
                Subset(
                    places,
                    self.params[places],
                    {key: self.state[key][places] for key in keys if self.state[key]},
                    self.param_indices[places],
                )
                for places, keys in both
                if places.start < places.stop
            ]
        return self._subsets[reach_started]

    def remember(self, group: dict[str, Any], grads: list[Tensor | None], first: int, states: list[State]) -> None:
        """Note what this was gathered from, for :meth:`is_current`."""
        self._key, self._members = cache_key(group, grads, first), list(group["params"])
        self._states, self._values = states, values_of(states)
        self._places = [index - first for index in self.param_indices]

    def is_current(self, group: dict[str, Any], grads: list[Any], first: int) -> bool:
        """Whether parameters, presence of gradients, options and state tensors are unchanged; then takes the gradients.

        The caller has checked that the state dicts are the same objects.
        """
        current = (
            self._key == cache_key(group, grads, first)
            and all_identical(group["params"], self._members)
            and all_identical(values_of(self._states), self._values)
        )
        if current:
            self.grads = [grads[i] for i in self._places]
        return current


def collect(
    first: int,
    group: dict[str, Any],
    states: defaultdict[Tensor, State],
    params: list[Tensor],
    grads: list[Tensor],
    param_indices: list[int],
    *columns: list[Tensor],
) -> None:
    """Append a group's parameters that have gradients, those with a reach first, with what belongs to them.

    Args:
        first: index of the group's first parameter.
        group: the group.
        states: of the optimizer; completed here.
        params, grads, param_indices, columns: the lists to append to; ``columns`` are those of ``STATE``.
    """
    flags, modulator = state.hidden_flags(group), MODULATORS[group["modulator"]]
    may_reach = group["gamma"] != 0 or group["reach_started"]
    for has_reach in (True, False):
        for index, (p, hidden) in enumerate(zip(group["params"], flags, strict=True), first):
            if p.grad is not None and (may_reach and hidden) is has_reach:
                own = state.complete_state(states[p], p, group, modulator if has_reach else None)
                params.append(p)
                grads.append(p.grad)
                param_indices.append(index)
                keys = state.STATE if has_reach else state.ADAMW_STATE
                for key, column in zip(state.STATE, columns, strict=True):
                    if key in keys and key in own:
                        column.append(own[key])


def cache_key(group: dict[str, Any], grads: list[Tensor | None], first: int) -> Any:
    """Options and presence of gradients on which the columns depend."""
    may_reach = group["gamma"] != 0 or group["reach_started"]
    return first, group["hidden"], may_reach, group["modulator"], [g is None for g in grads]


def values_of(states: Iterable[State]) -> list[Any]:
    """The values of all states, in order."""
    return list(chain.from_iterable(map(dict.values, states)))


def all_identical(some: Any, others: Any) -> bool:
    """Whether two collections hold the same objects."""
    return len(some) == len(others) and all(map(is_, some, others))
