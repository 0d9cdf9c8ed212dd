"""The tensors of a group's step as columns, cached until one of them or an option changes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import chain
from operator import is_
from typing import Any

from torch import Tensor

from . import state
from .fused.batches import BatchPlan, Columns
from .modulators import MODULATORS
from .update import State


class Subset:
    """Parameters whose steps have the same stages, with their state in columns.

    Attributes:
        grad_places: slice of their gradients in ``Gathered.grads``.
        params: the parameters.
        columns: of the state, one list of tensors for each key of the state.
        param_indices: their indices among the parameters of all groups.
        plan: the fused kernels' cache for these tensors.
        local_subsets: the cached local tensors, if a parameter is a DTensor.
    """

    def __init__(self, grad_places: slice, params: list[Tensor], columns: Columns, param_indices: list[int]) -> None:
        self.grad_places, self.params, self.columns, self.param_indices = grad_places, params, columns, param_indices
        self.plan: BatchPlan | None = None
        self.local_subsets: Any = None

    @property
    def has_reach(self) -> bool:
        """Whether these parameters have a reach."""
        return "reach" in self.columns


class Gathered:
    """The parameters of a group that have gradients, with their state. Parameters with a reach come first."""

    def __init__(self) -> None:
        self.params: list[Tensor] = []
        self.grads: list[Tensor] = []  # only during a step
        self.param_indices: list[int] = []
        self.columns: Columns = {key: [] for key in state.STATE}
        self._subsets: dict[bool, list[Subset]] = {}

    def subsets(self, reach_started: bool) -> list[Subset]:
        """Return a subset of the parameters that have a reach in this step and one of all others, unless empty."""
        if reach_started not in self._subsets:
            count = len(self.columns["reach"]) if reach_started else 0
            slices = ((slice(0, count), state.STATE), (slice(count, len(self.params)), state.ADAMW_STATE))
            self._subsets[reach_started] = [
                Subset(
                    places,
                    self.params[places],
                    {key: self.columns[key][places] for key in keys if self.columns[key]},
                    self.param_indices[places],
                )
                for places, keys in slices
                if places.start < places.stop
            ]
        return self._subsets[reach_started]

    def remember(self, group: dict[str, Any], grads: list[Tensor | None], first: int, states: list[State]) -> None:
        """Record the sources of these tensors, for :meth:`is_current`."""
        self._key, self._members = cache_key(group, grads, first), list(group["params"])
        self._states, self._values = states, values_of(states)
        self._places = [index - first for index in self.param_indices]

    def is_current(self, group: dict[str, Any], grads: list[Any], first: int) -> bool:
        """Return whether this cache still holds, and if so set ``grads`` to the gradients of this step.

        It holds if parameters, presence of gradients, options and state tensors are unchanged. The caller checks that
        the state dicts are the same objects.
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
    """Append to the lists a group's parameters that have gradients, with gradients, indices and state.

    Parameters with a reach come first.

    Args:
        first: index of the group's first parameter.
        group: the group.
        states: the optimizer's state; missing entries are added.
        params, grads, param_indices, columns: the lists to append to; one of ``columns`` for each key of ``STATE``.
    """
    flags, modulator = state.hidden_flags(group), MODULATORS[group["modulator"]]
    for has_reach in (True, False):
        for index, (p, hidden) in enumerate(zip(group["params"], flags, strict=True), first):
            if p.grad is not None and (may_reach(group) and hidden) is has_reach:
                own = state.complete_state(states[p], p, group, modulator if has_reach else None)
                params.append(p)
                grads.append(p.grad)
                param_indices.append(index)
                keys = state.STATE if has_reach else state.ADAMW_STATE
                for key, column in zip(state.STATE, columns, strict=True):
                    if key in keys and key in own:
                        column.append(own[key])


def may_reach(group: Mapping[str, Any]) -> bool:
    """Whether hidden weights of a group need the state of a reach."""
    return bool(group["gamma"] != 0 or group["reach_started"])


def cache_key(group: dict[str, Any], grads: list[Tensor | None], first: int) -> Any:
    """Return the index, options and presence of gradients on which the columns depend."""
    return first, group["hidden"], may_reach(group), group["modulator"], [g is None for g in grads]


def values_of(states: Iterable[State]) -> list[Any]:
    """Return the values of all states, in order."""
    return list(chain.from_iterable(map(dict.values, states)))


def all_identical(some: Any, others: Any) -> bool:
    """Return whether two collections hold the same objects in the same order."""
    return len(some) == len(others) and all(map(is_, some, others))
