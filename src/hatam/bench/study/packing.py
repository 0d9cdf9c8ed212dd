"""Runs and records as text, which is all that a trial of the queue can hold."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

from ..records import jsonable


def pack(value: Any) -> str:
    """As compressed text, some 1 kB for a record."""
    return base64.b85encode(zlib.compress(json.dumps(jsonable(value)).encode(), 9)).decode()


def unpack(text: str) -> Any:
    """What :func:`pack` packed.

    Raises:
        ValueError: it is damaged.

    Example:
        >>> unpack(pack({"seed": 1}))
        {'seed': 1}
    """
    try:
        return json.loads(zlib.decompress(base64.b85decode(text)))
    except (ValueError, zlib.error) as error:
        raise ValueError(f"the queue holds a damaged record ({error}); give the study a new storage") from error


def numbers(options: dict[str, Any]) -> dict[str, Any]:
    """Options with the infinity that JSON can only say as a word."""
    return {key: float(value) if value in ("inf", "-inf") else value for key, value in options.items()}
