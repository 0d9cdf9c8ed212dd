"""Records: one JSON file per run, written whole or not at all, and found again by what was run."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from . import archive

SCHEMA = 1


@dataclass(frozen=True)
class Run:
    """What is run: everything that decides the outcome, apart from the code and the machine.

    A run whose purpose is "tune" reads the validation data alone; a "judge" one also scores on the test data, once, and
    a "final" one measures all that a finished run can tell of there.
    ``source`` is a digest of code of the user's own that decides the outcome too.
    """

    task: str
    label: str
    contender: str
    options: dict[str, Any]
    seed: int
    steps: int
    batch_size: int
    warmup: float
    purpose: str = "final"
    source: str = ""

    def path(self, root: Path) -> Path:
        """Where its record lies. The name of the folder tells the options apart."""
        what = {key: value for key, value in jsonable(asdict(self)).items() if key not in ("seed", "label")}
        if self.purpose == "final":
            del what["purpose"]
        if not self.source:
            del what["source"]
        digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:10]
        return root / file_name(self.task) / f"{file_name(self.contender)}-{digest}" / f"{self.seed}.json"


def file_name(name: str) -> str:
    """A name as that of a file or folder: what is neither letter, digit, ``_``, ``.`` nor ``-`` becomes ``-``.

    Example:
        >>> file_name("../my task.py:TASK")
        'my-task.py-TASK'
    """
    return re.sub(r"[^\w.-]+", "-", name)[-100:].strip(".-") or "_"


def jsonable(value: Any) -> Any:
    """The value with what JSON cannot say in words: infinity and NaN."""
    if isinstance(value, dict):
        return {key: jsonable(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(x) for x in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def write(path: Path, record: dict[str, Any]) -> None:
    """Write a record so that a reader, or the next run, sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with archive.whole(path) as file:
        file.write(json.dumps(jsonable(record), indent=1, allow_nan=False).encode() + b"\n")


def read(path: Path) -> dict[str, Any]:
    """A record.

    Raises:
        ValueError: the file is not a record of this version; the message names it.
    """
    return parsed(path, path.read_bytes())


def parsed(path: Path, text: bytes) -> dict[str, Any]:
    """A record from its text; see :func:`read`."""
    try:
        record = json.loads(text)
        if record["schema"] != SCHEMA:
            raise ValueError(f"schema {record['schema']!r}")
        _ = record["run"]["seed"], record["result"]["status"], record["time"]["step_median_s"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a record of schema {SCHEMA} ({error}); remove it and run again") from error
    record["run"] = {"purpose": "final", "source": "", **record["run"]}  # older records lack these
    return record  # type: ignore[no-any-return]


def read_all(root: Path) -> list[dict[str, Any]]:
    """Every record below a folder, loose or archived, in the order of their paths."""
    if not root.exists():
        raise ValueError(f"{root} does not exist; run 'hatam compare --records {root}' first")
    found = []
    for path, text in archive.files(root):
        if isinstance(text, ValueError):
            raise text
        found.append((path.parent, int(path.stem), parsed(path, text)))
    return [record for _, _, record in sorted(found, key=lambda each: each[:2])]


@cache
def environment() -> dict[str, Any]:
    """The software and the machine, without the machine's name or paths."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        **commit(),
    }


@cache
def commit() -> dict[str, Any]:
    """The commit of the source tree that runs, and whether the library's code differs from it; none outside git."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain", "--", "..", "."))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "modified": None}
