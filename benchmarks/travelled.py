"""How far AdamW's weights come in a training: the length of a tensor's path in sizes of the tensor.

At AdamW's best lr for a cosine, a third of it and three times as much, one run each. See docs/decisions.md.

    python benchmarks/travelled.py               measure what has no record yet, fill in docs/decisions.md
    python benchmarks/travelled.py --render      fill in from the record alone
"""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any

import screening
import torch

from hatam.bench import records, report
from hatam.bench.cli import make_run
from hatam.bench.tasks import all_tasks, find
from hatam.bench.training import carry_out, prepare

RECORD = screening.ROOT / "results/screening/travelled.json"
SEED = 19999  # no stage of the screening has it
COLUMNS = ("a third", "best lr", "three times")


def measure() -> None:
    """Every task, each written as soon as it is there."""
    torch.set_num_threads(1)
    tasks = _read()
    for task in screening.LRS:
        if task not in tasks:
            tasks[task] = {column: travelled(task, lr) for column, lr in zip(COLUMNS, screening.lrs(task), strict=True)}
            records.write(RECORD, {"environment": records.environment(), "seed": SEED, "tasks": tasks})


def travelled(name: str, lr: float) -> list[float]:
    """N of every hidden tensor at the end of a training with no reach."""
    task = find(name)
    made = make_run(task, "hatam:horizon=0.0", SEED)
    run = dataclasses.replace(made, options={**made.options, "lr": lr})
    trainer = prepare(task, run)
    carry_out(task, run, trainer)
    return [float(state["path_length"]) for state in trainer.optimizer.state.values() if "path_length" in state]


def table() -> str:
    """The range over the hidden tensors, by task and lr."""
    tasks = _read()
    lines = ["| task | steps | " + " | ".join(COLUMNS) + " |", "|---|---:|" + "---:|" * len(COLUMNS)]
    for name in (name for name in all_tasks() if name in tasks):
        cells = [f"{shown(min(found))} – {shown(max(found))}" for found in tasks[name].values()]
        lines.append(f"| {name} | {find(name).steps} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(length: float) -> str:
    """With two digits."""
    return f"{length:.0f}" if length >= 10 else f"{length:.2g}"


def _read() -> dict[str, Any]:
    return dict(json.loads(RECORD.read_text(encoding="utf-8"))["tasks"]) if RECORD.exists() else {}


if __name__ == "__main__":
    if "--render" not in sys.argv[1:]:
        measure()
    report.fill_in(screening.ROOT / "docs/decisions.md", "travelled", table())
