"""HATAM in libraries that own the training loop. Each module imports its library, and ``hatam`` imports no module."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from ..optimizer import HATAM


def unwrapped(optimizer: Any) -> HATAM:
    """The HATAM inside wrappers that keep their optimizer in ``optimizer``, as accelerate's does.

    Raises:
        TypeError: there is no HATAM inside.
    """
    while not isinstance(optimizer, HATAM) and isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, HATAM):
        raise TypeError(f"this needs a HATAM optimizer, and the host has a {type(optimizer).__name__}")
    return optimizer
