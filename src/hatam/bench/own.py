"""Comparing optimizers in a training loop of one's own, over seeds."""

from __future__ import annotations

import itertools
import math
import operator
import os
import pickle
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from rich.progress import Progress as Bars
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from . import execution, records, runner
from .builders import Options
from .contenders import changed, parse
from .digests import digest
from .records import Run
from .results import Result, tabulate
from .terminal import plain_console
from .trainers import Trainer
from .training import Progress

MakeOptimizer: TypeAlias = Callable[[ParamsT], Optimizer]
TrainFunction: TypeAlias = Callable[[MakeOptimizer, int], float | Mapping[str, float]]
OwnFactory: TypeAlias = Callable[..., Optimizer]


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
            inside ``with evaluating(optimizer):``. torch's generator is seeded with ``seed`` before.
        contenders: names as ``hatam contenders`` lists them, with options as in ``"hatam:gamma=0.1,lr=0.01"``, or pairs
            ``(name, factory)`` with a ``factory(params, **options)``. The first is the one to which differences are.
            Only those with one gradient a step: SAM and its kin own the step and need a :class:`Task`.
        seeds: how many, or which.
        options: of all contenders, such as ``{"lr": 1e-3}``; their defaults are those of the study. A list or an array
            is a grid: every contender runs with each of its values. What a contender's own text says counts more.
        jobs: processes, of one thread each. With more than one, ``train_fn`` must be a function of a module, and a
            script needs ``if __name__ == "__main__":`` around what it does.
        folder: of the records.
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
        >>> [row.label for row in result.rows]
        ['adamw:lr=0.01', 'hatam:lr=0.01']
    """
    root = Path(folder)
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
    runner.refuse_twice([run for run in runs if run.seed == chosen[0]], root)
    work = partial(_train, train_fn, {c.label: c for c in contestants})
    todo = runner.missing(runs, root)
    if len(todo) < len(runs):
        print(f"{len(runs) - len(todo)} of {len(runs)} runs have records in {root / records.file_name(task)} already")
    failures = _run(todo, root, jobs, work)
    failed = {id(run) for run, _ in failures}
    read = [(run, records.read(run.path(root))) for run in runs if id(run) not in failed]
    result = Result(tabulate(read, labels), [(run.label, run.seed, text) for run, text in failures])
    print(result)
    return result


def evaluating(optimizer: Optimizer) -> AbstractContextManager[None]:
    """Inside, the model has the weights at which its optimizer is meant to be evaluated; afterwards what it had.

    For HATAM that is :meth:`hatam.HATAM.straightened`, for MSAM the undisplaced weights; for most it changes nothing.
    """
    own: Any = getattr(optimizer, "_evaluation", None) or getattr(optimizer, "straightened", nullcontext)
    return own()  # type: ignore[no-any-return]


def make_optimizer(contestant: Contestant, params: ParamsT) -> Optimizer:
    """The optimizer of a contender that takes one gradient a step.

    Raises:
        ValueError: it takes more.
    """
    if contestant.factory is not None:
        return contestant.factory(params, **contestant.options)
    contender, _ = parse(contestant.name, "")
    if "schedule" in contestant.options:
        raise ValueError(f"schedule of {contestant.label!r} has no effect here: your own loop sets lr; remove it")
    trainer = contender.train(_Parameters(params), _no_loss, contestant.options)  # type: ignore[arg-type]
    if type(trainer).step is not Trainer.step or type(trainer).arrive is not Trainer.arrive:
        raise ValueError(
            f"{contestant.label!r} owns the step, with several gradients or the model, or depends on the length of the "
            "run: it cannot be used through make_optimizer. Write your problem as a hatam.bench.Task and run: hatam "
            "compare --task ./file.py:TASK"
        )
    trainer.optimizer._evaluation = trainer.evaluation  # type: ignore[attr-defined]
    return trainer.optimizer


class _Parameters:
    """All that a contender of one gradient sees of a model."""

    def __init__(self, params: ParamsT) -> None:
        self.params = list(params)

    def parameters(self) -> list[Any]:
        return self.params

    def named_parameters(self) -> list[Any]:
        """As they were given: named or not, or in groups."""
        return self.params


def _no_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    raise NotImplementedError("the loss is train_fn's own")


def _contestants(contender: str | tuple[str, OwnFactory], options: Mapping[str, Any]) -> list[Contestant]:
    """A contender at every point of the grid that the options span."""
    try:
        spec, factory = (contender, None) if isinstance(contender, str) else contender
    except (TypeError, ValueError):
        raise ValueError(
            f"contenders: {contender!r} must be a name that 'hatam contenders' lists, or a pair (name, factory)"
        ) from None
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


def plain(value: Any) -> Any:
    """What numpy made as Python's own: a number, or a list."""
    if isinstance(value, list):
        return [plain(x) for x in value]
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else value


def _run(todo: Sequence[Run], root: Path, jobs: int, work: execution.Work) -> list[tuple[Run, str]]:
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
        if jobs > 1 and todo:
            return runner.run_all(todo, root, min(jobs, len(todo)), lambda run, n: bars.advance(bar, n), work=work)
        return execution.do(todo, root, lambda run, n: bars.advance(bar, n), work=work)


def _train(
    train_fn: TrainFunction, contestants: Mapping[str, Contestant], run: Run, progress: Progress
) -> dict[str, Any]:
    """One call of ``train_fn`` and its record, which ``hatam table`` can read too."""
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
    return {
        "schema": records.SCHEMA,
        "run": vars(run),
        "environment": records.environment(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
        "curve": [],
        "result": {
            "status": "ok" if all(map(math.isfinite, scores.values())) else "diverged",
            "scores": scores,
            "test": next(iter(scores.values())),
            "hessian_lambda_max": math.nan,
        },
        "time": {"step_median_s": math.nan, "total_s": seconds},
        "gradients_per_step": 1.0,
    }
