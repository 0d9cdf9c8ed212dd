"""HATAM in hosts that own the training loop. Each module needs its host; nothing here is imported by the library."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer

from ..optimizer import HATAM


def unwrapped(optimizer: Any) -> HATAM:
    """The HATAM in what a host made of it: accelerate keeps the optimizer that it wraps in ``optimizer``.

    Raises:
        TypeError: there is none.
    """
    while not isinstance(optimizer, HATAM) and isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, HATAM):
        raise TypeError(f"this needs a HATAM optimizer, and the host has a {type(optimizer).__name__}")
    return optimizer
