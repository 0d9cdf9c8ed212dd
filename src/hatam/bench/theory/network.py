"""Small networks on real data for the checks, trained step by step, and what is asked of them on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .. import schedules
from ..sharpness import Hessian, flat, flat_gradient
from ..tasks import Task, find

TASK = "mnist1d-mlp-plain"
SAMPLES = 1000  # of the training data, on which curvature is measured


class Training:
    """A network of the task under an optimizer, one mini-batch a step, warm-up and cosine.

    Args:
        make: the optimizer of the parameters.
        seed: of the network and of its batches.
        steps: until lr is 0.
        lr: at the peak.
        batch: samples in a mini-batch.
    """

    def __init__(
        self,
        make: Callable[[Any], torch.optim.Optimizer],
        seed: int,
        steps: int = 2000,
        lr: float = 0.03,
        batch: int = 128,
    ) -> None:
        self.task: Task = find(TASK)
        self.data = self.task.data()
        torch.manual_seed(seed)
        self.model = self.task.model()
        self.params = list(self.model.parameters())
        self.optimizer = make(self.params)
        self.steps, self.lr, self.batch = steps, lr, batch
        self.rng = torch.Generator().manual_seed(seed)
        self.at = 0

    def run(self, every: int) -> Iterator[int]:
        """Train, and stop now and then after a step: its number. At each stop the gradients are those of that step."""
        while self.at < self.steps:
            self.step()
            if self.at % every == 0:
                yield self.at

    def step(self) -> None:
        """One."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * schedules.cosine(self.at, self.steps, self.task.warmup)
        samples = len(self.data.train.y)
        chosen: Tensor | slice = slice(None)  # all of them at once: the gradient without noise
        if self.batch < samples:
            chosen = torch.randint(samples, (self.batch,), generator=self.rng)
        self.optimizer.zero_grad()
        self.loss(chosen).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.at += 1

    def loss(self, chosen: Tensor | slice = slice(SAMPLES)) -> Tensor:
        """The mean over some of the training samples."""
        train = self.data.train
        return self.task.loss(self.model(train.x[chosen]), train.y[chosen]).mean()

    def hessian(self, scale: Tensor | float = 1.0, chosen: slice = slice(SAMPLES)) -> Hessian:
        """S H S of that loss at the present weights, S diagonal and flat."""
        return hessian(lambda: self.loss(chosen), self.params, scale)

    def accuracy(self) -> float:
        """In % of the validation data, at the present weights."""
        with torch.no_grad():
            outputs = self.model(self.data.validation.x)
            return float(self.task.metric(outputs, self.data.validation.y).mean())


def hessian(loss: Callable[[], Tensor], params: list[nn.Parameter], scale: Tensor | float = 1.0) -> Hessian:
    """S H S of a loss."""
    with torch.enable_grad():
        return Hessian(flat_gradient(loss(), params, create_graph=True), params, scale)


def denominators(optimizer: torch.optim.Optimizer, params: list[nn.Parameter]) -> list[Tensor]:
    """h of each tensor, from the state of Adam or HATAM."""
    group = optimizer.param_groups[0]
    states = [optimizer.state[p] for p in params]
    return [(s["exp_avg_sq"] / (1 - group["betas"][1] ** s["step"].item())).sqrt() + group["eps"] for s in states]


def modulators(h: list[Tensor], cap: float) -> list[Tensor]:
    """S of each tensor."""
    return [(x / x.mean()).clamp(max=cap) for x in h]


__all__ = ["SAMPLES", "Training", "denominators", "flat", "hessian", "modulators"]
