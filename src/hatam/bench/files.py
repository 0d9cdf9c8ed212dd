"""Files that are written whole or not at all, and what a record says of the software. Needs torch alone."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import torch


def jsonable(value: Any) -> Any:
    """The value with what JSON cannot say in words: infinity and NaN."""
    if isinstance(value, dict):
        return {str(key): jsonable(x) for key, x in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(x) for x in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def write(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file so that a reader sees all of it or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole(path) as file:
        file.write(json.dumps(jsonable(content), indent=1, allow_nan=False).encode() + b"\n")


@contextmanager
def whole(path: Path) -> Iterator[BinaryIO]:
    """A file to write. A reader, or the next run, sees all of it or nothing."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=".tmp")
    os.chmod(temporary, 0o644)  # else nobody but its owner could read it
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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
    """The commit of the source tree, and whether the library's code differs from it; none outside git."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=here, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "modified": bool(git("status", "--porcelain", "--", "..", "."))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "modified": None}
