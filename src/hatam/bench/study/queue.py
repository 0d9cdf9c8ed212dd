"""The queue of a study: an Optuna storage, SQLite in the study's folder or PostgreSQL for many machines.

One Optuna study for each stage of a cell; one trial for each job. A trial holds the runs to do and, as they are done,
their records, so that a lost machine loses only the run it was at.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from ..records import Run, jsonable
from .packing import numbers, pack, unpack
from .stages import Job, Record
from .storage import ignoring_experimental, lock_before_reading, with_driver

RETRIES = 2
"""How often a job that crashed or raised is tried again."""

Result = TypeVar("Result")


class Waiting(NamedTuple):
    """How long to bear with silence, in seconds.

    Attributes:
        heartbeat: between two signs of life of a worker.
        grace: after this time without one its job is given to another.
        patience: after this time without the storage one gives up.
        poll: between two looks at an empty queue.
    """

    heartbeat: int = 30
    grace: int = 120
    patience: float = 600.0
    poll: float = 2.0


class Taken(NamedTuple):
    """A job that a worker has taken from the queue."""

    stage: str
    trial_id: int
    runs: list[Run]
    records: list[Record]


class State(NamedTuple):
    """Where a job is: "waiting", "running", "complete" or "failed"; its packed records, and its error."""

    state: str
    packed: list[str]
    error: str | None


def patient(method: Callable[..., Result]) -> Callable[..., Result]:
    """Repeat a call, at growing distances, while the storage cannot be reached."""

    @wraps(method)
    def repeated(self: Queue, *arguments: Any, **named: Any) -> Result:
        began, pause = time.monotonic(), 0.25
        while True:
            try:
                return method(self, *arguments, **named)
            except (StorageInternalError, sqlalchemy.exc.DBAPIError) as error:
                cause = error.__cause__ or error
                reason = str(getattr(cause, "orig", cause)).strip()
                if time.monotonic() - began > self.waiting.patience or not self.may_come_back(reason):
                    raise RuntimeError(
                        f"the queue at {self.address} cannot be used: {reason}. Finished runs are kept; put it right, "
                        "and the same command goes on"
                    ) from error
                logging.getLogger(__name__).warning("no answer from %s (%s): trying again", self.address, reason)
                time.sleep(pause)
                pause = min(2 * pause, 15.0)

    return repeated


class Queue:
    """The jobs of one study.

    Args:
        url: of the storage, as SQLAlchemy writes it.
        name: of the study; several may share a storage.
        waiting: how long to bear with silence.

    Raises:
        RuntimeError: the storage cannot be used; the message says why.
    """

    def __init__(self, url: str, name: str, waiting: Waiting = Waiting()) -> None:  # noqa: B008  (immutable)
        self.name, self.waiting = name, waiting
        self.url = with_driver(url)
        self.address = sqlalchemy.make_url(self.url).render_as_string(hide_password=True)
        self.sqlite = self.url.startswith("sqlite")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._retry = ignoring_experimental(lambda: optuna.storages.RetryHeartbeatStaleTrialCallback(max_retry=RETRIES))
        self._studies: dict[str, optuna.Study] = {}
        self._failed_since: dict[int, float] = {}  # by this machine's clock, when a failed try was first seen
        self.storage: optuna.storages.RDBStorage = self._connect()

    @patient
    def _connect(self) -> optuna.storages.RDBStorage:
        storage = ignoring_experimental(
            lambda: optuna.storages.RDBStorage(
                self.url,
                engine_kwargs={"connect_args": {"timeout": 60}} if self.sqlite else {"pool_pre_ping": True},
                heartbeat_interval=self.waiting.heartbeat,
                grace_period=self.waiting.grace,
                heartbeat_stale_trial_callback=self._retry,
            )
        )
        if self.sqlite:
            lock_before_reading(storage.engine)
        return storage

    def close(self) -> None:
        """Close the connections to the storage."""
        self.storage.remove_session()
        self.storage.engine.dispose()

    def may_come_back(self, reason: str) -> bool:
        """Whether an error may pass by itself: a server's may, a file's only where another process has it locked."""
        return not self.sqlite or any(word in reason for word in ("locked", "already exists", "UNIQUE"))

    def _study(self, stage: str) -> optuna.Study:
        if stage not in self._studies:
            self._studies[stage] = optuna.create_study(
                storage=self.storage,
                study_name=f"{self.name}/{stage}",
                direction="maximize",
                load_if_exists=True,
                sampler=optuna.samplers.RandomSampler(),
            )
        return self._studies[stage]

    @patient
    def note(self, key: str, value: Any) -> None:
        """Tell all workers something."""
        self._study("notes").set_user_attr(key, value)

    @patient
    def noted(self, key: str) -> Any:
        """What :meth:`note` told last, None if nothing."""
        return self._study("notes").user_attrs.get(key)

    @patient
    def stages(self) -> list[str]:
        """The stages that have jobs, in the order in which they came."""
        names = (study.study_name for study in self.storage.get_all_studies())
        prefix = f"{self.name}/"
        return [name[len(prefix) :] for name in names if name.startswith(prefix) and name != f"{prefix}notes"]

    @patient
    def put(self, stage: str, jobs: Sequence[tuple[Job, list[Record], float | None]]) -> None:
        """Fill a stage: jobs with the records there are of them and, where they are done, their value.

        What is in the queue already stays as it is, so that an interrupted call can be given again.

        Raises:
            ValueError: what is there are other runs.
        """
        study = self._study(stage)
        there = {t.user_attrs["job"]: t.user_attrs["runs"] for t in study.get_trials(deepcopy=False)}
        wanted = [[jsonable(asdict(run)) for run in job.runs] for job, _, _ in jobs]
        if any(job >= len(wanted) or unpack(runs) != wanted[job] for job, runs in there.items()):
            raise ValueError(
                f"the queue has other runs for {stage}: ranges or defaults have changed since it was filled; remove "
                "queue.sqlite3 in the study's folder, or give the study another --name"
            )
        for index, ((job, records, value), runs) in enumerate(zip(jobs, wanted, strict=True)):
            if index not in there:
                kept = {f"record-{record['run']['seed']}": pack(record) for record in records}
                study.add_trial(
                    optuna.create_trial(
                        state=TrialState.WAITING if value is None else TrialState.COMPLETE,
                        value=value,
                        user_attrs={"job": index, "params": jsonable(job.params), "runs": pack(runs), **kept},
                    )
                )

    @patient
    def states(self, stage: str) -> list[State]:
        """Where every job of a stage is, in their order. Jobs that were tried again are there once."""
        trials: dict[int, list[FrozenTrial]] = {}
        for trial in self.trials(stage):
            trials.setdefault(trial.user_attrs["job"], []).append(trial)
        return [self._state(stage, trials[job]) for job in sorted(trials)]

    def trials(self, stage: str) -> list[FrozenTrial]:
        """All trials of a stage, each try of a job by itself."""
        return self._study(stage).get_trials(deepcopy=False)

    def _state(self, stage: str, trials: list[FrozenTrial]) -> State:
        order = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING, TrialState.FAIL)
        best = min(trials, key=lambda trial: (order.index(trial.state), -trial.number))
        kept = [text for key, text in best.user_attrs.items() if key.startswith("record-")]
        name = {"COMPLETE": "complete", "RUNNING": "running", "WAITING": "waiting", "FAIL": "failed"}[best.state.name]
        error = best.user_attrs.get("error", "the worker died") if name == "failed" else None
        if name == "failed" and len(best.system_attrs.get("retry_history", [])) < RETRIES:
            # Who failed it puts it back in the next moment; if that has not come after this time, it died in between.
            since = self._failed_since.setdefault(best._trial_id, time.monotonic())
            if time.monotonic() - since > self.waiting.grace:
                self._retry(self._study(stage), best)
            name, error = "waiting", None
        return State(name, kept, error)

    @patient
    def try_again(self) -> None:
        """Put the jobs that failed for good back into the queue."""
        for stage in self.stages():
            for job, state in enumerate(self.states(stage)):
                if state.state == "failed":
                    failed = [t for t in self._study(stage).get_trials() if t.user_attrs["job"] == job][-1]
                    attributes = {key: value for key, value in failed.user_attrs.items() if key != "error"}
                    self._study(stage).add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs=attributes))

    @patient
    def retry_stale(self, stage: str) -> None:
        """Give the jobs of workers without a sign of life to others."""
        ignoring_experimental(lambda: optuna.storages.fail_stale_trials(self._study(stage)))

    @patient
    def take(self, stage: str, most: int) -> list[Taken]:
        """At most so many jobs, now this worker's. A job that failed before comes alone."""
        taken: list[Taken] = []
        for trial in self._study(stage).get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            retried = bool(trial.system_attrs.get("retry_history"))
            if len(taken) == most or (retried and taken):
                break
            self.storage.record_heartbeat(trial._trial_id)  # before it is ours: should we die in between, it is found
            if self.storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                runs = [Run(**{**run, "options": numbers(run["options"])}) for run in unpack(trial.user_attrs["runs"])]
                kept = [unpack(text) for key, text in trial.user_attrs.items() if key.startswith("record-")]
                taken.append(Taken(stage, trial._trial_id, runs, kept))
                if retried:
                    break
        return taken

    @patient
    def beat(self, taken: Taken) -> None:
        """A sign of life."""
        self.storage.record_heartbeat(taken.trial_id)

    @patient
    def keep(self, taken: Taken, record: Record) -> None:
        """Put the record of a run beside it."""
        self._if_still_ours(
            lambda: self.storage.set_trial_user_attr(
                taken.trial_id, f"record-{record['run']['seed']}", pack(jsonable(record))
            )
        )

    @patient
    def complete(self, taken: Taken, value: float) -> None:
        """All runs of the job are done; their mean score, higher is better."""
        self._if_still_ours(
            lambda: self.storage.set_trial_state_values(taken.trial_id, TrialState.COMPLETE, [value]),
        )

    @patient
    def fail(self, taken: Taken, error: str) -> None:
        """A run of the job raised; it is tried again up to RETRIES times."""

        def give_back() -> None:
            self.storage.set_trial_user_attr(taken.trial_id, "error", error)
            self.storage.set_trial_state_values(taken.trial_id, TrialState.FAIL)
            self._retry(self._study(taken.stage), self.storage.get_trial(taken.trial_id))

        self._if_still_ours(give_back)

    @patient
    def release(self, taken: Taken) -> None:
        """Put a job back that was interrupted; that is no failure."""
        self._if_still_ours(lambda: self.storage.set_trial_state_values(taken.trial_id, TrialState.WAITING))

    @staticmethod
    def _if_still_ours(change: Callable[[], object]) -> None:
        """A job whose heartbeat was late is another worker's now; its records are kept as files all the same."""
        try:
            change()
        except UpdateFinishedTrialError:
            logging.getLogger(__name__).warning("a job came to an end elsewhere in the meantime")
