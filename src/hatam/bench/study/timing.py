"""What a step of every contender costs on a task, measured in turns in one process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median

import pandas as pd
import torch

from ..contenders import parse
from ..running import one_thread
from ..tasks import Task

WARM_UP = 3


def measure(task: Task, contenders: Sequence[str], rounds: int = 60) -> pd.DataFrame:
    """Seconds of a step of each contender at its defaults: the median of ``rounds``, and relative to the first.

    All take turns, one step each, on one thread: what disturbs the machine disturbs all of them. The ratio is the
    median of the rounds' ratios.
    """
    with one_thread():
        torch.manual_seed(0)
        data, seconds = task.data(), {name: list[float]() for name in contenders}
        trainers = {}
        for name in contenders:
            contender, options = parse(name, task.name)
            trainers[name] = contender.train(task.model(), task.loss, {**options, "lr": 1e-4})
        x, y = data.train.x[: task.batch_size], data.train.y[: task.batch_size]
        for turn in range(-WARM_UP, rounds):
            for name, trainer in trainers.items():
                # Half-way HATAM has its reach. Late SAM is still AdamW there: its mean step follows from its share.
                trainer.arrive(task.steps // 2, task.steps, task.warmup, 1e-4)
                before = time.perf_counter()
                trainer.step(x, y)
                if turn >= 0:
                    seconds[name].append(time.perf_counter() - before)
    first = seconds[contenders[0]]
    return pd.DataFrame(
        {
            "task": task.name,
            "contender": name,
            "rounds": rounds,
            "step_s": median(own),
            "ratio": median(a / b for a, b in zip(own, first, strict=True)),
        }
        for name, own in seconds.items()
    )
