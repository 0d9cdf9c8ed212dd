"""Records: one row per run in one Parquet file per study, written whole or not at all.

``pandas.read_parquet("results/study.parquet")`` reads a study. Columns: those of :class:`Run`, what it reached, what it
cost, and the software. ``options``, ``curve``, ``shifts`` and ``scores`` are JSON.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from .files import environment, jsonable, whole

Record = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What is run: everything that decides the outcome, apart from the code and the machine.

    Attributes:
        task: name of the task.
        label: the contender as it was asked for, such as ``"sam:rho=0.1"``.
        contender: its name.
        options: all of its options.
        seed: of model and batches.
        steps, batch_size, warmup: the length of the run, and the share of its steps in which lr rises.
        comparison: "steps" or "gradients": what is equal for all contenders; "" where nothing is fixed.
        stage: "search", "select" or "final". Only a final run reads the test data.
        source: digest of the user's own code that decides the outcome, or "".
    """

    task: str
    label: str
    contender: str
    options: dict[str, Any] = field(hash=False)
    seed: int
    steps: int
    batch_size: int
    warmup: float
    comparison: str = ""
    stage: str = "final"
    source: str = ""

    @property
    def key(self) -> str:
        """Digest of all that decides the outcome: runs with one key are one run."""
        what = {k: v for k, v in asdict(self).items() if k not in ("label", "comparison", "stage")}
        what["tests"] = self.stage == "final"
        return hashlib.sha256(json.dumps(jsonable(what), sort_keys=True, default=str).encode()).hexdigest()[:16]


def row(run: Run, **found: Any) -> Record:
    """A record: the run, what was found, and the environment. Mappings and lists become JSON."""
    whole = {"key": run.key, **asdict(run), **found, **environment()}
    return {
        key: json.dumps(jsonable(value)) if isinstance(value, (dict, list)) else value for key, value in whole.items()
    }


class Store:
    """The records of a study or of comparisons: one Parquet file.

    Args:
        path: of the file, which need not exist; a folder means ``records.parquet`` in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path if path.suffix == ".parquet" else path / "records.parquet"

    def read(self) -> pd.DataFrame:
        """All records; an empty frame where there is no file.

        Raises:
            ValueError: the file is damaged.
        """
        if not self.path.exists():
            return pd.DataFrame({"key": pd.Series(dtype=str)})
        try:
            frame = pd.read_parquet(self.path)
            if not {"key", "task", "contender", "seed", "stage", "test"} <= set(frame.columns):
                raise ValueError(f"it has the columns {', '.join(map(str, frame.columns))}")
        except Exception as error:
            raise ValueError(
                f"{self.path} holds no records of runs ({type(error).__name__}: {error}); restore it, or remove it and "
                "run again"
            ) from error
        return frame

    def add(self, records: Iterable[Record]) -> None:
        """Add records; one with the key, comparison and stage of another takes its place.

        The file is locked meanwhile: several processes may add.
        """
        new = pd.DataFrame(list(records))
        if new.empty:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_suffix(".lock")):
            frame = pd.concat([old, new]) if len(old := self.read()) else new
            frame = frame.drop_duplicates(["key", "comparison", "stage"], keep="last")
            with whole(self.path) as file:
                frame.to_parquet(file, index=False, compression="zstd")
