"""One run: train a contender on a task with a seed, and say what came out and what it cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from .batch_norm import statistics_of
from .contenders import CONTENDERS
from .records import Record, Run, row
from .sharpness import KEYS, measure
from .tasks import Data, Split, Task
from .trainers import Trainer

CHUNK = 1000  # samples evaluated at a time
TRAIN_EVALUATED = 4000  # training samples on which a finished run is evaluated, the first ones
AUGMENTATION = 2**31  # between the seeds of the order and of the augmentation; torch takes the last 32 bits
Progress = Callable[[int], None]


def train(task: Task, run: Run, progress: Progress = lambda steps: None) -> Record:
    """Do a run and return its record.

    Model and batches depend on the seed alone, so that contenders can be compared seed by seed. A run whose loss is
    no longer finite ends there, and its status is "diverged": that is a result, not an error.

    Args:
        task: the task that ``run`` names.
        run: what to run.
        progress: told now and then how many steps were made since it was last told.
    """
    return carry_out(task, run, prepare(task, run), progress)


def prepare(task: Task, run: Run) -> Trainer:
    """The trainer of a run, with its model, before the first step."""
    torch.manual_seed(run.seed)
    return CONTENDERS[run.contender].train(task.model(), task.loss, run.options)


def carry_out(task: Task, run: Run, trainer: Trainer, progress: Progress = lambda steps: None) -> Record:
    """A run with a trainer that is made already; see :func:`train` for the arguments."""
    data = task.data()
    started = time.time()
    curve, step_times = _steps(task, run, trainer, data, progress)
    diverged = not math.isfinite(curve[-1]["train_loss"])
    final = run.stage == "final"
    with evaluating(trainer, data, run.batch_size):
        found = measured(task, trainer.model, data, diverged=diverged) if final else {"test": math.nan}
    return row(
        run,
        metric=task.metric_name,
        higher_is_better=task.higher_is_better,
        status="diverged" if diverged else "ok",
        validation=curve[-1]["validation"],
        **found,
        curve=[
            [point["step"], *(_short(point[key]) for key in ("train_loss", "validation"))] for point in curve if final
        ],
        step_s=median(step_times),
        seconds=sum(step_times),
        gradients_per_step=trainer.samples_differentiated / (len(step_times) * run.batch_size),
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
    )


def _short(value: float) -> float:
    """Six digits, which is what a curve needs in a file."""
    return float(f"{value:.6g}")


def _steps(
    task: Task, run: Run, trainer: Trainer, data: Data, progress: Progress
) -> tuple[list[dict[str, float]], list[float]]:
    """The training loop: the curve, and the time of every step, evaluation left out."""
    _check_first(task, trainer.model, data, run.batch_size)
    curve: list[dict[str, float]] = []
    step_times: list[float] = []
    batches = _batches(task, data.train, run.batch_size, run.seed)
    every = max(1, run.steps // task.curve_points)
    losses: list[Tensor] = []
    for step in range(1, run.steps + 1):
        trainer.arrive(step - 1, run.steps, run.warmup, run.options["lr"])
        batch = next(batches)
        before = time.perf_counter()
        losses.append(trainer.step(*batch))
        step_times.append(time.perf_counter() - before)
        if step % every == 0 or step == run.steps:
            mean_loss = float(torch.stack(losses).mean())
            with evaluating(trainer, data, run.batch_size):
                score = evaluate(task, trainer.model, data.validation)
            curve.append({"step": step, "train_loss": mean_loss, "validation": score})
            progress(len(losses))
            losses = []
            if not math.isfinite(mean_loss):
                break
    return curve, step_times


@contextmanager
def evaluating(trainer: Trainer, data: Data, batch_size: int) -> Iterator[None]:
    """Inside, the model is at the trainer's point of evaluation, with BatchNorm's statistics of training data there.

    One rule for all contenders, see :mod:`.batch_norm`.
    """
    samples = max(1, TRAIN_EVALUATED // batch_size) * batch_size
    with trainer.evaluation(), statistics_of(trainer.model, torch.split(data.train.x[:samples], batch_size)):
        yield


def _check_first(task: Task, model: nn.Module, data: Data, batch_size: int) -> None:
    """Refuse what would train to the end and have no score then.

    Raises:
        ValueError: the batch is larger than the training data, or a loss or metric is not one real number per sample.
    """
    samples = len(data.train.y)
    if not 1 <= batch_size <= samples:
        raise ValueError(f"batch_size={batch_size} of {task.name!r} must be in [1, {samples}], its training data")
    few = Split(data.train.x[:2], data.train.y[:2])
    model.eval()
    with torch.no_grad():
        outputs = model(few.x)
        for name in ("loss", "metric"):
            found = getattr(task, name)(outputs, few.y)
            if found.shape != (len(few.y),) or not found.is_floating_point():
                raise ValueError(
                    f"{name} of {task.name!r} gives shape {tuple(found.shape)} and {found.dtype} for {len(few.y)} "
                    "samples: it must give one floating-point number for each, as torch's losses do with "
                    "reduction='none' where a sample has one target; take the mean over the others, or .float()"
                )
    model.train()


def evaluate(task: Task, model: nn.Module, split: Split) -> float:
    """The mean of the task's metric over a split."""
    return _means(model, split, task.metric)[0]


def _means(model: nn.Module, split: Split, *scores: Callable[[Tensor, Tensor], Tensor]) -> list[float]:
    """The means of scores per sample, the samples taken in turns that fit into memory."""
    values: list[list[Tensor]] = [[] for _ in scores]
    model.eval()
    with torch.no_grad():
        for x, y in zip(torch.split(split.x, CHUNK), torch.split(split.y, CHUNK), strict=True):
            outputs = model(x)
            for score, found in zip(scores, values, strict=True):
                found.append(score(outputs, y))
    model.train()
    return [float(torch.cat(found).mean()) for found in values]


def measured(task: Task, model: nn.Module, data: Data, *, diverged: bool = False) -> dict[str, Any]:
    """What is measured at the end of a final run, and there alone: it reads the test data."""
    trained = Split(data.train.x[:TRAIN_EVALUATED], data.train.y[:TRAIN_EVALUATED])
    train_score, train_loss = _means(model, trained, task.metric, task.loss)
    known = task.sharpness and not diverged
    sharpness = measure(model, task, data.train) if known else dict.fromkeys(KEYS, math.nan)
    return {
        "test": evaluate(task, model, data.test),
        "train": train_score,
        "train_loss": train_loss,
        **sharpness,
        "shifts": {
            shift.name: {str(severity): evaluate(task, model, shift.split(severity)) for severity in shift.severities}
            for shift in task.shifts
        },
    }


def _batches(task: Task, train: Split, batch_size: int, seed: int) -> Iterator[Split]:
    """Batches without end: every epoch in a new order, the incomplete last batch left out, the inputs augmented.

    The augmentation has a generator of its own: the order is the same with and without it.
    """
    generator, augmenting = (torch.Generator().manual_seed(each) for each in (seed, seed + AUGMENTATION))
    samples = len(train.y)
    while True:
        order = torch.randperm(samples, generator=generator)
        for chosen in torch.split(order[: samples - samples % batch_size], batch_size):
            x = train.x[chosen]
            yield Split(task.augment(x, augmenting) if task.augment else x, train.y[chosen])
