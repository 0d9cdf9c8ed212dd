"""The timing stage: what a step of every contender costs on a task, measured in turns in one process."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from .. import records
from ..contenders import CONTENDERS, parse
from ..tasks import Task
from ..training import evaluate, measured
from .plans import TIME_UNIT

ROUNDS, STEPS_A_ROUND, WARM_UP = 12, 5, 3
SLOW_S = 0.05  # a step that takes so long is timed once a round: it is not disturbed by the one before


def measure(task: Task, contenders: Sequence[str]) -> dict[str, Any]:
    """Median times in seconds of a step of each contender, at its default options, of one validation, and of all
    that is measured at the end of a final run.

    All take turns, a few steps each, on one thread: what disturbs the machine disturbs all of them.
    """
    names = [*contenders, *([] if TIME_UNIT in contenders else [TIME_UNIT])]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        data = task.data()
        trainers = {
            name: CONTENDERS[name].train(task.model(), task.loss, {**parse(name, task.name)[1], "lr": 1e-3})
            for name in names
        }
        times: dict[str, list[float]] = {name: [] for name in names}
        x, y = data.train.x[: task.batch_size], data.train.y[: task.batch_size]
        warm = {name: [_seconds(partial(t.step, x, y)) for _ in range(WARM_UP)] for name, t in trainers.items()}
        for _ in range(ROUNDS):
            for name, trainer in trainers.items():
                for _ in range(STEPS_A_ROUND if min(warm[name]) < SLOW_S else 1):
                    times[name].append(_seconds(partial(trainer.step, x, y)))
        model = next(iter(trainers.values())).model
        evaluation = _seconds(lambda: evaluate(task, model, data.validation))
        final = _seconds(lambda: measured(task, model, data))
    finally:
        torch.set_num_threads(threads)
    return {
        "schema": records.SCHEMA,
        "task": task.name,
        "environment": records.environment(),
        "step_s": {name: median(values) for name, values in times.items()},
        "evaluation_s": evaluation,
        "final_s": final,
    }


def _seconds(do: Callable[[], object]) -> float:
    before = time.perf_counter()
    do()
    return time.perf_counter() - before


def read_or_measure(task: Task, contenders: Sequence[str], path: Path) -> dict[str, Any]:
    """The recorded times, or new ones, which are then recorded.

    A contender that came later is measured beside SAM, and recorded as so many times as long as SAM's recorded time:
    the others keep theirs, and with them the steps of their runs.

    Raises:
        ValueError: the record is damaged; the message names it.
    """
    if not path.exists():
        records.write(path, measure(task, contenders))
    timing = _read(path)
    times = timing["step_s"]
    missing = [name for name in contenders if name not in times]
    if missing:
        new = measure(task, missing)["step_s"]
        times |= {name: new[name] / new[TIME_UNIT] * times[TIME_UNIT] for name in missing}
        records.write(path, timing)
    return timing


def _read(path: Path) -> dict[str, Any]:
    try:
        timing: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        times = timing["step_s"]
        _ = [float(x) for x in (*times.values(), times[TIME_UNIT], timing["evaluation_s"], timing["final_s"])]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a record of times ({error!r}); remove it and run again") from error
    return timing


def steps_in_time(task: Task, contender: str, timing: dict[str, Any]) -> int:
    """How many steps a contender makes in the time that SAM takes for the task's.

    Example:
        >>> from hatam.bench.tasks import all_tasks
        >>> steps_in_time(all_tasks()["mnist1d-mlp"], "adamw", {"step_s": {"adamw": 1.0, "sam": 1.9}})
        3800
    """
    share: float = timing["step_s"][TIME_UNIT] / timing["step_s"][contender]
    return max(2, round(task.steps * share))
