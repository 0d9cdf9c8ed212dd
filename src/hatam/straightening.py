"""Taking parameters to z, the straightened point, and back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from . import narrow, options, sharded
from .forms import displaced, real
from .paths import real_state


@contextmanager
def straightened(groups: Iterable[dict[str, Any]], states: Mapping[Tensor, dict[str, Any]]) -> Iterator[None]:
    """Inside, the parameters of these groups are not displaced; afterwards they are what they were, to the last bit."""
    saved: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    try:
        with torch.no_grad():
            for first, group in options.numbered(groups):
                o = options.resolve(group, group["lr_peak"])
                for number, p in enumerate(group["params"], first):
                    state = states.get(p, {})
                    if displaced(state, o):
                        radius = state["displacement_radius"]
                        saved.append((p, p.detach().clone(), radius, radius.clone()))
                        parts = {key: sharded.local(x) for key, x in state.items()}
                        narrow.undo_displacement_(real(sharded.local(p.detach())), real_state(parts), o, number)
                        radius.zero_()
        yield
    finally:
        with torch.no_grad():
            for p, w, radius, before in reversed(saved):  # the first of those that share memory was saved undisturbed
                p.copy_(w)
                radius.copy_(before)
