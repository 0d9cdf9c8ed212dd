"""A worker: takes runs from the storage and does them. It has no state of its own."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import TrialState

from ..contenders import parse, space
from ..records import Record, Run
from ..running import described
from ..spaces import suggest
from ..tasks import Task
from ..training import train
from .stages import score
from .storage import Storage, storage_error


def work(storage: Storage, tasks: Mapping[str, Task], *, stay: bool = True) -> int:
    """Take runs until the study is finished.

    Args:
        storage: where from.
        tasks: by name.
        stay: wait for further runs until the study is finished; else leave when none waits.

    Returns:
        the number of runs done.

    Raises:
        RuntimeError: the storage cannot be used.
    """
    done = 0
    while True:
        taken = storage.patiently(lambda: _one(storage, tasks))
        done += taken
        if not taken:
            if not stay or storage.patiently(lambda: storage.noted("finished")):
                return done
            time.sleep(storage.waiting.poll)


def _one(storage: Storage, tasks: Mapping[str, Task]) -> bool:
    """Do one run of the first open stage that has any waiting; False where none waits."""
    stages = [storage.stage(key) for key in storage.noted("open") or []]
    study = _next(stages)
    if study is None:
        storage.fail_lost(stages)
        return False
    # Without a sign of life for too long, the run was another's meanwhile.
    with suppress(UpdateFinishedTrialError):
        study.optimize(lambda trial: _do(trial, tasks), n_trials=1, catch=(Exception,))
    return True


def _next(stages: list[optuna.Study]) -> optuna.Study | None:
    """The first stage in which a run waits and none is being done, so that a search knows its results; or any."""
    second = None
    for study in stages:
        states = {trial.state for trial in study.get_trials(deepcopy=False)}
        if TrialState.WAITING in states:
            if TrialState.RUNNING not in states:
                return study
            second = second or study
    return second


def _do(trial: optuna.Trial, tasks: Mapping[str, Task]) -> float:
    """Do the run of a trial and put its record beside it; the value is the validation score, higher is better."""
    attributes = trial.user_attrs
    if "job" not in attributes:  # another worker took the last one that waited
        raise optuna.TrialPruned
    try:
        run = _run(trial, attributes["run"])
        task = tasks[run.task]
        record = train(task, run)
    except Exception as error:
        if storage_error(error) is None:
            trial.set_user_attr("error", described(error))
        raise
    trial.set_user_attr("record", packed(record))
    return score(record, task)


def _run(trial: optuna.Trial, fields: dict[str, Any]) -> Run:
    """The run of a trial. In the search, the trial chooses its options."""
    if fields["options"] is None:
        contender, task = fields["contender"], fields["task"]
        fields = {**fields, "options": {**parse(contender, task)[1], **suggest(trial, space(contender, task))}}
    return Run(**fields)


def packed(record: Record) -> str:
    """A record as text; infinity and NaN are JSON's common extension."""
    return json.dumps(record)


def unpacked(text: str) -> Record:
    """A record from its text."""
    return json.loads(text)  # type: ignore[no-any-return]
