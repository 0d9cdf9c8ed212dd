"""Comparing optimizers in a training loop of one's own, over seeds."""

from __future__ import annotations

import itertools
import json
import math
import operator
import os
import pickle
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pandas as pd
import torch
from rich.progress import Progress as Bars
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from . import running
from .contenders import Options, changed, parse
from .digests import digest
from .records import Record, Run, Store, row
from .report.tables import compared, summary
from .terminal import as_table, plain_console, show
from .trainers import Trainer
from .training import Progress

MakeOptimizer: TypeAlias = Callable[[ParamsT], Optimizer]
TrainFunction: TypeAlias = Callable[[MakeOptimizer, int], float | Mapping[str, float]]
OwnFactory: TypeAlias = Callable[..., Optimizer]


class Result(NamedTuple):
    """What a comparison gave.

    Attributes:
        table: a row for each score and contender, see :func:`hatam.bench.report.tables.summary`; ``metric`` names the
            score, and ``time`` is that of a run.
        scores: of each run: label, seed, metric and score.
        failures: the runs that raised, as (label, seed, what and where).
    """

    table: pd.DataFrame
    scores: pd.DataFrame
    failures: list[tuple[str, int, str]]

    def show(self) -> None:
        """Print one table for each score, and the failures."""
        for metric, rows in self.table.groupby("metric", sort=False):
            shown = compared(rows).rename(columns={"test": "mean"})  # the function says on which data
            show(as_table(shown), f"{metric}: mean ± 95% interval; differences to the first, paired by seed")
        for label, seed, text in self.failures:
            plain_console().print(f"failed: {label}, seed {seed}: {text}", soft_wrap=True)


class Contestant(NamedTuple):
    """A contender with its options, under the name that the table shows."""

    label: str
    name: str
    options: Options
    factory: OwnFactory | None  # of the user's own


def compare(
    train_fn: TrainFunction,
    contenders: Iterable[str | tuple[str, OwnFactory]] = ("adamw", "hatam"),
    seeds: int | Iterable[int] = 5,
    *,
    options: Mapping[str, Any] | None = None,
    jobs: int = 1,
    folder: str | os.PathLike[str] = "runs",
    name: str | None = None,
) -> Result:
    """Train with every contender and every seed, print what each reached and what it took, and return that.

    Every run is recorded in ``folder`` as it ends. A run that has a record there is not done again, unless ``train_fn``
    or the contender's own factory has changed: their text, the numbers, words and functions that are bound to them, and
    the numbers and words of their modules that they name. What they call, and what is inside lists, tensors and other
    objects, is not looked at, so after a change there give another ``name`` or folder. How many runs had records is
    printed.
    A run that raises is reported, and the others go on. A score that is NaN or infinite counts as diverged.

    Args:
        train_fn: ``train_fn(make_optimizer, seed)`` trains once and returns a score, or several by name. It gets its
            optimizer from ``make_optimizer(params)``, an ordinary ``torch.optim.Optimizer``, and takes its scores
            inside ``with evaluating(optimizer):``. torch's generator is seeded with ``seed`` before. With SAM among the
            contenders it calls ``optimizer.step(closure)``, as torch's LBFGS asks for, which the others take too.
        contenders: names as ``hatam contenders`` lists them, with options as in ``"hatam:gamma=0.1,lr=0.01"``, or pairs
            ``(name, factory)`` with a ``factory(params, **options)``. The first is the one to which differences are.
            Those that own the whole step, as K-SAM, or depend on its place in the run, need a :class:`Task`.
        seeds: how many, or which.
        options: of all contenders, such as ``{"lr": 1e-3, "betas": (0.9, 0.999)}``; their defaults are AdamW's in the
            study: lr 0.03, weight decay 0.15, betas 0.9 and 0.95. A list or an array is a grid: every contender runs
            with each of its values. What a contender's own text says counts more.
        jobs: processes, of one thread each. With more than one, ``train_fn`` must be a function of a module, and a
            script needs ``if __name__ == "__main__":`` around what it does.
        folder: of the file with the records, ``NAME.parquet``.
        name: of the comparison; by default the name of ``train_fn``.

    Raises:
        ValueError: a contender or an option is unknown, or cannot be used so; a score is missing.

    Example:
        >>> import tempfile, torch
        >>> from hatam.bench import compare, evaluating
        >>> def train(make_optimizer, seed):
        ...     model, x = torch.nn.Linear(2, 1), torch.ones(4, 2)
        ...     optimizer = make_optimizer(model.parameters())
        ...     for _ in range(3):
        ...         optimizer.zero_grad()
        ...         model(x).square().mean().backward()
        ...         optimizer.step()
        ...     with evaluating(optimizer):
        ...         return model(x).square().mean().item()
        >>> result = compare(train, seeds=2, options={"lr": 0.01}, folder=tempfile.mkdtemp())  # doctest: +ELLIPSIS
        score: mean ± 95% interval...
        >>> list(result.table["label"])
        ['adamw:lr=0.01', 'hatam:lr=0.01']
    """
    if isinstance(contenders, str):
        raise ValueError(f"contenders={contenders!r} must be a list of contenders; put it in brackets")
    chosen = [operator.index(seed) for seed in (seeds if isinstance(seeds, Iterable) else range(seeds))]
    if not chosen:
        raise ValueError(f"seeds={seeds!r} is none: it must be how many, from 1, or a list of them")
    task = name or str(getattr(getattr(train_fn, "func", train_fn), "__name__", type(train_fn).__name__))
    contestants = [made for contender in contenders for made in _contestants(contender, options or {})]
    labels = [contestant.label for contestant in contestants]
    if len(set(labels)) < len(labels):
        raise ValueError(f"contenders={labels!r} has a name twice: give each its own")
    for contestant in contestants:  # what is wrong with one is said before all runs
        if contestant.factory is None:
            make_optimizer(contestant, [torch.nn.Parameter(torch.zeros(1))])
    runs = [
        Run(task, c.label, c.name, c.options, seed, 0, 0, 0.0, source=digest(train_fn, c.factory))
        for seed in chosen
        for c in contestants
    ]
    running.refuse_twice([run for run in runs if run.seed == chosen[0]])
    store = Store(Path(folder) / (re.sub(r"[^\w-]+", "-", task) + ".parquet"))
    work = partial(_train, train_fn, {c.label: c for c in contestants})
    todo = running.missing(runs, store)
    if len(todo) < len(runs):
        print(f"{len(runs) - len(todo)} of {len(runs)} runs have records in {store.path} already")
    failures = _run(todo, store, jobs, work)
    scores = _scores(store.read(), {run.key: run.label for run in runs})
    table = summary(scores, labels[0], labels)
    result = Result(table, scores, [(run.label, run.seed, text) for run, text in failures])
    result.show()
    return result


def _scores(records: pd.DataFrame, labels: Mapping[str, str]) -> pd.DataFrame:
    """A row for each score of each of these runs, with the time of the run as that of a step."""
    mine = records[records["key"].isin(labels)]
    rows = [
        {
            **one,
            "label": labels[one["key"]],
            "metric": metric,
            "test": float(score),
            "status": "ok" if math.isfinite(float(score)) else "diverged",
            "step_s": one["seconds"],
        }
        for one in mine.to_dict("records")
        for metric, score in json.loads(one["scores"]).items()
    ]
    return pd.DataFrame(rows, columns=[*mine.columns] if not rows else None)


def make_optimizer(contestant: Contestant, params: ParamsT) -> Optimizer:
    """The optimizer of a contender.

    Raises:
        ValueError: it is more than an optimizer.
    """
    if contestant.factory is not None:
        return contestant.factory(params, **contestant.options)
    contender, _ = parse(contestant.name, "")
    if "schedule=" in contestant.label:
        raise ValueError(f"schedule of {contestant.label!r} has no effect here: your own loop sets lr; remove it")
    if contender.trainer is not Trainer:
        raise ValueError(
            f"{contestant.label!r} owns the whole step, or depends on its place in the run: it cannot be used through "
            "make_optimizer. Write your problem as a hatam.bench.Task and run: hatam compare --task ./file.py:TASK"
        )
    return contender.make(params, contestant.options)


def _contestants(contender: str | tuple[str, OwnFactory], options: Mapping[str, Any]) -> list[Contestant]:
    """A contender at every point of the grid that the options span."""
    try:
        spec, factory = (contender, None) if isinstance(contender, str) else contender
    except (TypeError, ValueError):
        raise ValueError(
            f"contenders: {contender!r} must be a name that 'hatam contenders' lists, or a pair (name, factory)"
        ) from None
    options = options if factory else one_by_one(options)
    name, _, text = spec.partition(":")
    changes = [change for change in text.split(",") if change]
    given = changed(spec, changes)
    axes = [
        [(key, value) for value in (values if isinstance(values, list) else [values])]
        for key, values in ((key, plain(values)) for key, values in options.items())
        if key not in given
    ]
    made = []
    for point in itertools.product(*axes):
        label = f"{name}:{','.join([*changes, *(f'{key}={value}' for key, value in point)])}".rstrip(":")
        made.append(Contestant(label, name, given | dict(point) if factory else parse(label, "")[1], factory))
    return made


def one_by_one(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The options with β1 and β2, which the contenders take one by one, in place of torch's ``betas``."""
    if "betas" not in options:
        return options
    betas = options["betas"]
    if not isinstance(betas, tuple) or len(betas) != 2:
        raise ValueError(
            f"options: betas={betas!r} must be a pair such as (0.9, 0.95); for a grid give beta1 and beta2"
        )
    rest = {key: value for key, value in options.items() if key != "betas"}
    return {**rest, "beta1": betas[0], "beta2": betas[1]}


def plain(value: Any) -> Any:
    """What numpy made as Python's own: a number, or a list."""
    if isinstance(value, list):
        return [plain(x) for x in value]
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def _run(todo: Sequence[Run], store: Store, jobs: int, work: running.Work) -> running.Failed:
    """Do the runs, here or in processes, behind a progress bar; return those that raised."""
    if jobs > 1:
        try:
            if (
                b"__main__" in pickle.dumps(work)
                and not Path(getattr(sys.modules["__main__"], "__file__", "")).is_file()
            ):
                raise pickle.PicklingError("they were typed in, not read from a file")
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise ValueError(
                f"jobs={jobs} needs functions that another process can import ({error}): define train_fn and factories "
                "at the top of a module, or use jobs=1"
            ) from None
    with Bars(console=plain_console(stderr=True), transient=True) as bars:
        bar = bars.add_task("training", total=len(todo))
        jobs = min(jobs, max(1, len(todo)))
        return running.run_all(todo, store, jobs, lambda run, n: bars.advance(bar, n), work=work)


def _train(train_fn: TrainFunction, contestants: Mapping[str, Contestant], run: Run, progress: Progress) -> Record:
    """One call of ``train_fn`` and its record."""
    torch.manual_seed(run.seed)
    started, before = time.time(), time.perf_counter()
    returned = train_fn(partial(make_optimizer, contestants[run.label]), run.seed)
    seconds = time.perf_counter() - before
    if returned is None:
        raise TypeError("train_fn returned None: it must return a score, or a mapping of names to scores")
    named = returned if isinstance(returned, Mapping) else {"score": returned}
    if not named:
        raise ValueError("train_fn returned a mapping without a score; it must have one at least")
    scores = {key: float(value) for key, value in named.items()}
    progress(1)
    return row(
        run,
        metric=next(iter(scores)),
        higher_is_better=True,
        status="ok" if all(map(math.isfinite, scores.values())) else "diverged",
        scores=scores,
        test=next(iter(scores.values())),
        seconds=seconds,
        gradients_per_step=math.nan,
        started=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
    )
