"""Many runs of one contender on one task at a time: a small net's step costs more in Python than in arithmetic.

The models' parameters are rows of stacked tensors, so one vectorized forward and backward pass serves all runs. The
rest is each run's own, as in :mod:`hatam.bench.training`: the contender's steps, its optimizer, the batches, the
evaluation. A run comes out as it does alone, but for rounding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from .contenders import parse
from .records import Run
from .tasks import Split, Task
from .trainers import Gradient, Losses, Trainer
from .training import prepare, training

COMMON = ("task", "contender", "steps", "batch_size", "warmup", "purpose")
"""What the runs of a batch have in common; label, options and seed are each run's own."""

Report = Callable[[Run, int], None]  # told the steps that a run made since the last report


class Stack:
    """Models of one architecture; their parameters and gradients become rows of stacked tensors, one a name.

    Args:
        models: alike but for their numbers.
        loss: one loss per sample.
    """

    def __init__(self, models: Sequence[nn.Module], loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.model, self.loss = copy.deepcopy(models[0]), loss  # a copy: of the model only its structure is used
        self.params: dict[str, Tensor] = {}
        self.grads: list[Tensor] = []
        for name, first in models[0].named_parameters():
            rows = [model.get_parameter(name) for model in models]
            stacked = torch.stack([row.detach() for row in rows])
            for row, place in zip(rows, stacked.unbind(), strict=True):
                row.data = place
            self.params[name] = stacked.requires_grad_(first.requires_grad)
            if first.requires_grad:
                self.grads.append(torch.zeros_like(stacked))
                for row, place in zip(rows, self.grads[-1].unbind(), strict=True):
                    row.grad = place

    def answer(self, requests: Sequence[Gradient | Losses]) -> list[Tensor]:
        """Answer the requests of all models at once, in their order.

        Raises:
            ValueError: they are not all of one kind and shape.
        """
        kinds = {f"{type(request).__name__} of {len(request.x)} samples" for request in requests}
        if len(kinds) > 1 or len(requests) < len(next(iter(self.params.values()))):
            asked = ", ".join(sorted(kinds))
            raise ValueError(
                f"{len(requests)} of the runs ask at the same time for {asked}; only where all ask for the same can "
                "they be done together, so do them one by one"
            )
        x, y = (torch.stack(column) for column in zip(*requests, strict=True))
        with torch.set_grad_enabled(isinstance(requests[0], Gradient)):
            losses = vmap(self._losses)(self.params, x, y)
            if isinstance(requests[0], Losses):
                return list(losses.unbind())
            means = losses.mean(1)
            leaves = [p for p in self.params.values() if p.requires_grad]
            for kept, grad in zip(self.grads, torch.autograd.grad(means.sum(), leaves), strict=True):
                kept.copy_(grad)
        return list(means.detach().unbind())

    def _losses(self, params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return self.loss(functional_call(self.model, params, (x,)), y)


def train_many(task: Task, runs: Sequence[Run], progress: Report = lambda run, steps: None) -> list[dict[str, Any]]:
    """Do runs of one contender together and return their records, in their order.

    The records are as those of :func:`hatam.bench.training.train`, but have no times: instead ``"batched"`` says how
    many runs shared the time. A run that diverges ends as it does alone, and the others go on without it.

    Args:
        task: the task that the runs name.
        runs: alike in task, contender, steps, batch size, warm-up and purpose.
        progress: told now and then how many steps a run made since it was last told.

    Raises:
        ValueError: the runs differ in more than label, options and seed, or ask for different things in a step.
    """
    done = {id(run): record for run, record in as_they_end(task, runs, progress)}
    return [done[id(run)] for run in runs]


def as_they_end(task: Task, runs: Sequence[Run], progress: Report) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Do runs together as :func:`train_many`; each is handed over with its record as soon as it has ended."""
    for key in COMMON:
        if len(values := {getattr(run, key) for run in runs}) > 1:
            raise ValueError(f"runs that are done together must have the same {key}, these have {sorted(values)}")
    trainers = [prepare(task, run) for run in runs]
    trainings = [
        training(task, run, trainer, partial(progress, run)) for run, trainer in zip(runs, trainers, strict=True)
    ]
    going = list(range(len(runs)))
    losses: list[Any] = [None] * len(runs)
    stack: Stack | None = None
    while going:
        batches: dict[int, Split] = {}
        for i, loss in zip(going, losses, strict=True):
            try:
                batches[i] = trainings[i].send(loss)
            except StopIteration as end:
                yield runs[i], {**end.value, "time": {"step_median_s": None, "steps_s": None, "batched": len(runs)}}
        if not batches:
            return
        if stack is None or len(batches) < len(going):
            going = list(batches)
            stack = Stack([trainers[i].model for i in going], task.loss)
        losses = step(stack, [trainers[i] for i in going], list(batches.values()))


def step(stack: Stack, trainers: Sequence[Trainer], batches: Sequence[Split]) -> list[Tensor]:
    """One step of every trainer, each on its batch; returns their losses."""
    steps = [trainer.steps(*batch) for trainer, batch in zip(trainers, batches, strict=True)]
    answers: list[Any] = [None] * len(steps)
    losses: list[Tensor] = []
    while True:
        requests: list[Gradient | Losses] = []
        for trainer, running, answer in zip(trainers, steps, answers, strict=True):
            try:
                requests.append(running.send(answer))
            except StopIteration as end:
                losses.append(end.value)
            else:
                if isinstance(requests[-1], Gradient):
                    trainer.samples_differentiated += len(requests[-1].x)
        if not requests:
            return losses
        answers = stack.answer(requests)


def refusal(task: Task, contender: str) -> str | None:
    """Why runs of a contender on a task cannot be done together, in words; None where they can. Tries a step of two."""
    _, options = parse(contender, task.name)
    runs = [Run(task.name, contender, contender, options, seed, 1, task.batch_size, task.warmup) for seed in (0, 1)]
    with torch.random.fork_rng(devices=[]):
        trainers = [prepare(task, run) for run in runs]
        models = [trainer.model for trainer in trainers]
        if buffers := [name for name, _ in models[0].named_buffers()]:
            return f"its model has buffers, such as {buffers[0]}, which a forward pass may change"
        kind = type(trainers[0])
        if kind.step is not Trainer.step or kind.answer is not Trainer.answer:
            return "its trainer does not leave it to others to answer its requests"
        batches = [Split(*(part[: task.batch_size] for part in task.data().train))] * 2
        before = torch.get_rng_state()
        models[0](batches[0].x)
        if not torch.equal(before, torch.get_rng_state()):
            return "its model draws random numbers in training (dropout, for instance), which each run must draw alone"
        stack = Stack(models, task.loss)
        for module in (module for model in models for module in model.modules()):
            module.register_forward_pre_hook(_refuse_call)
        try:
            step(stack, trainers, batches)
        except Exception as error:
            return f"a step of two runs at a time fails: {error}"
        if not torch.equal(before, torch.get_rng_state()):
            return "its trainer draws random numbers, which each run must draw alone"
    return None


def _refuse_call(module: nn.Module, arguments: Any) -> None:
    raise RuntimeError("its trainer calls the model by itself")
