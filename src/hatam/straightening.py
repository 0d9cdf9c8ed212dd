"""Moving parameters to z, the straightened point, and back to w."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from . import narrow, options, sharded
from .state import drop_scalars, has_offset, hidden_flags, real, real_state
from .update import Options, State

States = Mapping[Tensor, dict[str, Any]]
Move = Callable[[Tensor, State, Options, int], None]

Groups = Iterable[tuple[int, dict[str, Any]]]  # each with the index of its first parameter


EVALUATING = "step() needs the weights at which gradients are taken; call optimizer.train() first"


def refuse_inside(optimizer: Any, what: str) -> None:
    """Refuse what the end of a ``straightened()`` block would undo.

    Raises:
        RuntimeError: a block is open.
    """
    if optimizer._straightened:
        raise RuntimeError(f"{what} inside straightened() would be undone when the block ends; end the block first")


def offsets(groups: Groups, states: States) -> Iterator[tuple[Tensor, dict[str, Any], Options, int]]:
    """Yield the parameters that have an offset, with their states, options and indices."""
    for first, group in groups:
        o = options.resolve(group, group["lr_peak"])
        for index, p in enumerate(group["params"], first):
            if has_offset(states.get(p, {}), o):
                yield p, states[p], o, index


def move(groups: Groups, states: States, how: Move, skipped: Sequence[bool] = ()) -> None:
    """Move every parameter that has an offset: to z with ``narrow.undo_offset_``, to w with ``narrow.redo_offset_``.

    ``skipped`` marks parameters of the only group. They do not move; with ``redo_offset_`` their κ becomes 0.
    """
    groups = list(groups)
    for p, state, o, index in offsets(groups, states):
        if skipped and skipped[index - groups[0][0]]:
            if how is narrow.redo_offset_:
                state["reach"].zero_()
            continue
        local_state = {key: sharded.local_tensor(x) for key, x in state.items()}
        local = real(sharded.local_tensor(p.detach()))
        resolved = local.resolve_neg()
        how(resolved, real_state(local_state), o, index)
        if resolved is not local:
            local.copy_(resolved)


def drop_lost_reaches(first: int, group: dict[str, Any], states: States) -> None:
    """Undo the offset of parameters that may no longer have a reach, and delete the scalars of the reach."""
    flags = hidden_flags(group)
    stays = [hidden or "reach" not in states.get(p, {}) for p, hidden in zip(group["params"], flags, strict=True)]
    if not all(stays):
        with torch.no_grad():
            move([(first, group)], states, narrow.undo_offset_, skipped=stays)
        drop_scalars(states, [p for p, stay in zip(group["params"], stays, strict=True) if not stay])


@contextmanager
def straightened(groups: list[tuple[int, dict[str, Any]]], states: States) -> Iterator[None]:
    """Set the parameters of these groups to z for the block, and restore them bit for bit at its end.

    κ is 0 inside, so that a checkpoint made there has z and no offset to undo.
    """
    saved: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for p, state, _, _ in offsets(groups, states):
                saved.append((p, p.detach().clone(), state["reach"], state["reach"].clone()))
            move(groups, states, narrow.undo_offset_)
            for _, _, reach, _ in saved:
                reach.zero_()
        yield
    finally:
        with torch.no_grad():
            for p, w, reach, before in saved:
                p.copy_(w)
                reach.copy_(before)
