"""HATAM in libraries that own the training loop. Each module imports its library, and ``hatam`` imports no module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

from ..optimizer import HATAM
from ..reports import Report
from ..telemetry import Telemetry


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


class Observer:
    """What callbacks that observe have in common: they observe optimizers until the training ends.

    Args:
        every: optimizer steps from one observation to the next.
    """

    def __init__(self, every: int = 200) -> None:
        self.every = every
        self.observed: list[Telemetry] = []

    def observe(self, optimizer: HATAM, write: Callable[[Report], None]) -> None:
        """Start observing an optimizer, and call ``write`` with each report."""
        self.observed.append(Telemetry(optimizer, self.every, write))

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        """Remove the hooks."""
        for telemetry in self.observed:
            telemetry.detach()
        self.observed.clear()
