"""The host's part of a step on a GPU, measured without one: everything but the launches, which do nothing here.

HATAM's GPU path gets CPU tensors, and its three launches are empty; AdamW's two likewise. What Triton's launcher and
CUDA need for a launch is not in it.

    python benchmarks/host_time.py             measure, write the record, fill in the table
    python benchmarks/host_time.py --render    fill in from the record alone
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import step_cost
import torch

from hatam import fused
from hatam.bench import records, report
from hatam.fused import gpu

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "results/step_cost/host_time.json"
SHAPES = ("MLP, 1 k", "transformer, 3 M", "25 M", "2,000 small, 2 M")
ROUNDS = 200


def nothing(*args: Any, **kwargs: Any) -> None:
    """A launch."""


class Nothing:
    """A kernel whose launch does nothing."""

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return nothing


@contextmanager
def without_launches() -> Iterator[None]:
    """Inside, CPU tensors take the GPU's path, and no kernel runs."""
    loaded = gpu.kernels()
    empty = SimpleNamespace(prepare=Nothing(), update=Nothing(), finish=Nothing(), words=loaded.words, tl=loaded.tl)

    def kernels() -> Any:
        return empty

    with (
        mock.patch.dict(fused.KERNELS, cpu=gpu),
        mock.patch.object(gpu, "kernels", kernels),
        mock.patch.object(torch, "_fused_adamw_", nothing),
        mock.patch.object(torch, "_foreach_add_", nothing),
    ):
        yield


def measure() -> dict[str, Any]:
    """Seconds of a step by shape and contender, in turns."""
    shapes = {}
    with without_launches():
        for shape in SHAPES:
            params = step_cost.parameters(shape)
            optimizers = {name: step_cost.CONTENDERS[name](params) for name in (step_cost.REFERENCE, "HATAM")}
            seconds: dict[str, list[float]] = {name: [] for name in optimizers}
            for _ in range(max(20, ROUNDS // (1 + len(params) // 20))):
                for name, optimizer in optimizers.items():
                    start = time.perf_counter()
                    optimizer.step()
                    seconds[name].append(time.perf_counter() - start)
            shapes[shape] = {name: found[5:] for name, found in seconds.items()}
    return {"environment": records.environment(), "shapes": shapes}


def table(record: dict[str, Any]) -> str:
    """Microseconds of both, and the median ratio with quartiles."""
    lines = ["| host's part of a step | AdamW fused, µs | HATAM, µs | ratio | n |", "|---|---:|---:|---:|---:|"]
    for shape, seconds in record["shapes"].items():
        low, middle, high = step_cost.quartiles(step_cost.ratios(seconds, "HATAM"))
        micro = [f"{1e6 * statistics.median(found):,.0f}" for found in seconds.values()]
        n = len(seconds["HATAM"])
        lines.append(f"| {shape} | {' | '.join(micro)} | {middle:.2f} ({low:.2f}–{high:.2f}) | {n} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if "--render" not in sys.argv[1:]:
        records.write(RECORD, measure())
    report.fill_in(ROOT / "docs/speed.md", "host-time", table(json.loads(RECORD.read_text(encoding="utf-8"))))
