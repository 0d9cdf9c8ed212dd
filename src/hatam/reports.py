"""Reports from the observations of :mod:`hatam.telemetry`: numbers of whole groups, ratios, and writers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

Report = dict[str, Any]
NORMS = ("grad_norm", "bend_norm", "offset_norm", "param_norm", "update_norm")
MEANS = ("modulator_mean", "capped", "effective_step")


def group_numbers(params: list[dict[str, float]]) -> dict[str, float]:
    """The numbers of a group as if its parameters were one tensor, without the reach and the quantiles."""
    made: dict[str, float] = {}
    for key in (*NORMS, *MEANS, "modulator_max", "bend_update"):
        values = [(found[key], found["numel"]) for found in params if key in found]
        if not values:
            continue
        if key in NORMS:
            made[key] = math.sqrt(sum(x * x for x, _ in values))
        elif key in MEANS:
            made[key] = sum(x * n for x, n in values) / sum(n for _, n in values)
        else:
            made[key] = max(x for x, _ in values) if key == "modulator_max" else sum(x for x, _ in values)
    return made


def with_ratios(found: Mapping[str, float]) -> dict[str, float]:
    """An observation with its ratios, without ``bend_update`` and ``numel``."""
    made = {key: x for key, x in found.items() if key not in ("bend_update", "numel")}
    ratios = (
        ("bend_ratio", "bend_norm", "grad_norm"),
        ("offset_ratio", "offset_norm", "param_norm"),
        ("update_ratio", "update_norm", "param_norm"),
    )
    for name, above, below in ratios:
        if above in made:
            made[name] = ratio(made[above], made[below])
    if "bend_update" in found:
        made["bend_update_cosine"] = ratio(found["bend_update"], found["bend_norm"] * found["update_norm"])
    return made


def ratio(x: float, y: float) -> float:
    return x / y if y else math.nan


# Writers ------------------------------------------------------------------------------------------------------------


def flat(report: Report, prefix: str = "hatam") -> dict[str, float]:
    """A report as scalars by name: ``hatam/groups/0/update_ratio``, ``hatam/params/layer.weight/update_ratio``.

    Example:
        >>> flat({"step": 3, "groups": [{"capped": 0.5}], "params": {"w": {"capped": 0.5}}})
        {'hatam/groups/0/capped': 0.5, 'hatam/params/w/capped': 0.5}
    """
    owners = {f"groups/{i}": found for i, found in enumerate(report["groups"])}
    owners |= {f"params/{name}": found for name, found in report["params"].items()}
    return {f"{prefix}/{owner}/{key}": x for owner, found in owners.items() for key, x in found.items()}


def to_json_lines(path: Path | str) -> Callable[[Report], None]:
    """A writer for :class:`Telemetry` that appends reports to a file as lines of JSON. NaN and infinity become null."""

    def write(report: Report) -> None:
        text = json.dumps(_plain(report), allow_nan=False)
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    return write


def _plain(x: Any) -> Any:
    if isinstance(x, dict):
        return {key: _plain(y) for key, y in x.items()}
    if isinstance(x, list):
        return [_plain(y) for y in x]
    return None if isinstance(x, float) and not math.isfinite(x) else x


class SummaryWriter(Protocol):
    """The method that :func:`to_tensorboard` needs; ``torch.utils.tensorboard.SummaryWriter`` has it."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> Any: ...


def to_tensorboard(writer: SummaryWriter) -> Callable[[Report], None]:
    """A writer for :class:`Telemetry` that passes each number to TensorBoard's ``SummaryWriter``."""

    def write(report: Report) -> None:
        for name, x in flat(report).items():
            writer.add_scalar(name, x, report["step"])

    return write
