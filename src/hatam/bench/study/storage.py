"""The database under the queue: its address, and what SQLite and Optuna need to be told."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy
from optuna.exceptions import ExperimentalWarning

Result = TypeVar("Result")


FILE = "queue.sqlite3"
"""In a study's folder, unless the queue is elsewhere."""


def embedded(folder: Path) -> str:
    """The address of the storage in a study's folder."""
    return f"sqlite:///{folder / FILE}"


def with_driver(url: str) -> str:
    """``postgresql://`` by psycopg 3, which the extra ``postgres`` brings."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        raise ValueError(f"storage={url!r} is not an address; give one such as postgresql://user@host/database")
    return f"postgresql+psycopg://{rest}" if scheme in ("postgresql", "postgres") else url


def ignoring_experimental(call: Callable[[], Result]) -> Result:
    """Optuna calls its heartbeat experimental; the tests here watch over it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return call()


def lock_before_reading(engine: sqlalchemy.Engine) -> None:
    """Make SQLite lock the file when a transaction begins: else two workers could take one job."""

    @sqlalchemy.event.listens_for(engine, "connect")
    def by_hand(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @sqlalchemy.event.listens_for(engine, "begin")
    def lock(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections made before this do not know it
