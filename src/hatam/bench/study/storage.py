"""The storage between leader and workers: Optuna's, SQLite in a file by default, PostgreSQL for many machines.

One Optuna study is one stage of a cell; one trial is one run. A worker's sign of life, and another try of what a lost
worker was at, are Optuna's.
"""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import optuna
import sqlalchemy
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState

RETRIES = 2
"""How often a run whose worker was lost is tried again."""

STORAGE_ERRORS = (StorageInternalError, sqlalchemy.exc.DBAPIError)

Result = TypeVar("Result")


class Waiting(NamedTuple):
    """Seconds between two signs of life of a worker, without one until its run is another's, without an answer of the
    storage until one gives up, and between two looks at it."""

    heartbeat: int = 30
    grace: int = 120
    patience: float = 600.0
    poll: float = 2.0


class Storage:
    """Optuna's storage, and the studies in it that belong to one study of ours.

    Args:
        url: as SQLAlchemy writes it.
        name: of the study; several may share a storage.
        waiting: how long to bear with silence.

    Raises:
        RuntimeError: the storage cannot be used; the message says why.
    """

    def __init__(self, url: str, name: str, waiting: Waiting = Waiting()) -> None:  # noqa: B008  (immutable)
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.simplefilter("ignore", ExperimentalWarning)  # of the heartbeat; the tests here watch over it
        self.url, self.name, self.waiting = with_driver(url), name, waiting
        self.sqlite = self.url.startswith("sqlite")
        self._studies: dict[str, optuna.Study] = {}
        self._silent: dict[int, float] = {}  # trials without a sign of life, and when they were first seen so
        self.optuna: RDBStorage = self.patiently(self._connect)

    def _connect(self) -> RDBStorage:
        storage = RDBStorage(
            self.url,
            engine_kwargs={"connect_args": {"timeout": 60}} if self.sqlite else {"pool_pre_ping": True},
            heartbeat_interval=self.waiting.heartbeat,
            grace_period=self.waiting.grace,
            heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(max_retry=RETRIES),
        )
        if self.sqlite:
            lock_before_reading(storage.engine)
        return storage

    def patiently(self, call: Callable[[], Result]) -> Result:
        """Repeat a call, at growing distances, while the storage cannot be reached."""
        began, pause = time.monotonic(), 0.25
        while True:
            try:
                return call()
            except Exception as failure:
                error = storage_error(failure)
                if error is None:
                    raise
                cause = error.__cause__ or error
                reason = str(getattr(cause, "orig", cause)).strip()
                passing = not self.sqlite or any(x in reason for x in ("locked", "already exists", "UNIQUE"))
                address = sqlalchemy.make_url(self.url).render_as_string(hide_password=True)
                if not passing or time.monotonic() - began > self.waiting.patience:
                    raise RuntimeError(
                        f"the storage {address} cannot be used: {reason}. Finished runs are kept; put it right, and "
                        "the same command goes on"
                    ) from error
                logging.getLogger(__name__).warning("no answer from %s (%s): trying again", address, reason)
                time.sleep(pause)
                pause = min(2 * pause, 15.0)

    def stage(self, key: str) -> optuna.Study:
        """The Optuna study of a stage, such as ``"search/digits/adamw"``."""
        if key not in self._studies:
            self._studies[key] = optuna.create_study(
                storage=self.optuna,
                study_name=f"{self.name}/{key}",
                direction="maximize",
                load_if_exists=True,
                # It ranks the scores, so that diverged runs do not bend its model, and it allows for noise.
                sampler=optuna.samplers.TPESampler(multivariate=True, constant_liar=True),
            )
        return self._studies[key]

    def note(self, **attributes: Any) -> None:
        """Tell all workers something."""
        for key, value in attributes.items():
            self.stage("notes").set_user_attr(key, value)

    def noted(self, key: str) -> Any:
        """What :meth:`note` told last, None if nothing."""
        return self.stage("notes").user_attrs.get(key)

    def fail_lost(self, studies: Iterable[optuna.Study]) -> None:
        """Fail the trials whose workers were lost; Optuna then has their runs wait again.

        Optuna overlooks a worker that is lost between taking a trial and its first sign of life. Such a trial gets a
        sign here, and then fails as any other.
        """
        with self.optuna.engine.connect() as connection:
            signs = set(connection.execute(sqlalchemy.text("SELECT trial_id FROM trial_heartbeats")).scalars())
        for study in studies:
            for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
                if trial._trial_id in signs:
                    continue
                now = time.monotonic()
                if now - self._silent.setdefault(trial._trial_id, now) > self.waiting.grace:
                    self.optuna.record_heartbeat(trial._trial_id)
            optuna.storages.fail_stale_trials(study)

    def close(self) -> None:
        """Close the connections."""
        self.optuna.remove_session()
        self.optuna.engine.dispose()


def storage_error(error: BaseException | None) -> BaseException | None:
    """The storage's error behind an error: Optuna may raise others where the storage is lost while a run ends."""
    while error is not None and not isinstance(error, STORAGE_ERRORS):
        error = error.__cause__ or error.__context__
    return error


def jobs(study: optuna.Study) -> dict[int, FrozenTrial]:
    """The trial that counts of each job of a stage: a job that was tried again has several, and counts once."""
    order = (TrialState.COMPLETE, TrialState.RUNNING, TrialState.WAITING, TrialState.FAIL)
    found: dict[int, FrozenTrial] = {}
    for trial in study.get_trials(deepcopy=False, states=order):
        job = trial.user_attrs.get("job")
        if job is not None and (job not in found or order.index(trial.state) < order.index(found[job].state)):
            found[job] = trial
    return found


def is_lost(trial: FrozenTrial) -> bool:
    """Whether the trial of a job failed with its worker, and should be waiting again: who failed it was lost then."""
    failed = trial.state == TrialState.FAIL and "error" not in trial.user_attrs
    return failed and len(trial.system_attrs.get("retry_history", [])) < RETRIES


def again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Put the job of a trial back."""
    attributes = {key: value for key, value in trial.user_attrs.items() if key not in ("error", "record")}
    study.enqueue_trial(dict(trial.params), user_attrs=attributes)


def with_driver(url: str) -> str:
    """``postgresql://`` by psycopg 3, which the extra ``postgres`` brings."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise ValueError(f"storage={url!r} is not an address; give one such as postgresql://user@host/database")
    return f"postgresql+psycopg://{rest}" if scheme in ("postgresql", "postgres") else url


def embedded(folder: Path) -> str:
    """The address of the storage in a folder."""
    return f"sqlite:///{folder / 'storage.sqlite3'}"


def lock_before_reading(engine: sqlalchemy.Engine) -> None:
    """Make SQLite lock the file when a transaction begins: else two workers could take one run."""

    @sqlalchemy.event.listens_for(engine, "connect")
    def by_hand(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @sqlalchemy.event.listens_for(engine, "begin")
    def lock(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections made before this do not know it


def counted(study: optuna.Study) -> Mapping[str, int]:
    """How many jobs of a stage wait, run, are done or have failed."""
    names = {"WAITING": "waiting", "RUNNING": "running", "COMPLETE": "complete", "FAIL": "failed"}
    found = dict.fromkeys(names.values(), 0)
    for trial in jobs(study).values():
        found["waiting" if is_lost(trial) else names[trial.state.name]] += 1
    return found
