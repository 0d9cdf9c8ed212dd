"""Optimizers whose gradient is taken at a displaced point: what switches to the point to publish, and back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim.optimizer import Optimizer


class Displaced(Optimizer):
    """Base of those whose parameters in training are not the point to evaluate.

    A group's option ``evaluating`` says at which of the two its parameters are.
    """

    def _displace(self, group: dict[str, Any], sign: int) -> None:
        """Move the group's parameters by their displacement: to the training point (1) or back from it (-1)."""
        raise NotImplementedError

    def _refuse_evaluating(self) -> None:
        if any(group["evaluating"] for group in self.param_groups):
            raise RuntimeError("step() needs the weights at which gradients are taken; call optimizer.train() first")

    def eval(self) -> None:
        """Bring the parameters to the point to evaluate or to save. A step is refused until :meth:`train`."""
        self._switch(evaluating=True)

    def train(self, mode: bool = True) -> None:
        """Bring the parameters back to where gradients are taken, up to rounding; ``train(False)`` is :meth:`eval`."""
        self._switch(evaluating=not mode)

    @torch.no_grad()
    def _switch(self, *, evaluating: bool) -> None:
        for group in self.param_groups:
            if group["evaluating"] != evaluating:
                self._displace(group, -1 if evaluating else 1)
                group["evaluating"] = evaluating

    @contextmanager
    def straightened(self) -> Iterator[None]:
        """Inside, the parameters are those of :meth:`eval`; afterwards they are what they were, to the last bit."""
        saved = [(p, p.detach().clone()) for group in self.param_groups for p in group["params"]]
        modes = [group["evaluating"] for group in self.param_groups]
        try:
            self.eval()
            yield
        finally:
            with torch.no_grad():
                for p, before in saved:
                    p.copy_(before)
            for group, mode in zip(self.param_groups, modes, strict=True):
                group["evaluating"] = mode
