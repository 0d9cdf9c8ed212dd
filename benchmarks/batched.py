"""How many times as many runs a minute are done together in one program as one after the other; one thread.

The two take turns, and a ratio is that of one round. Timed are short runs whose evaluation has the share that it has
in a run of the task's own length; the final evaluation, which is each run's own either way, is left out.

    python benchmarks/batched.py             measure, write the record, fill in the table
    python benchmarks/batched.py --render    fill in from the record alone
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hatam.bench import records, report
from hatam.bench.batched import train_many
from hatam.bench.cli import make_run
from hatam.bench.tasks import Data, Split, Task, all_tasks
from hatam.bench.training import train

ROOT = Path(__file__).resolve().parent.parent
TASKS = ("mnist1d-mlp", "mnist1d-conv", "digits", "diabetes")
CONTENDERS = ("adamw", "hatam-relative", "sam")
SIZES = (1, 8, 32, 96)
STEPS = 40


def shortened(task: Task) -> Task:
    """The task with so little validation data that one evaluation in ``STEPS`` steps has its usual share."""
    data = task.data()
    samples = round(len(data.validation.y) * task.curve_points * STEPS / task.steps)
    fewer = Data(data.train, Split(*(part[:samples] for part in data.validation)), data.test)
    return dataclasses.replace(task, data=lambda: fewer, curve_points=1)


def seconds(do: Callable[[], Any]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    do()
    return time.perf_counter() - start


def timed(task: Task, contender: str, size: int, rounds: int) -> dict[str, list[float]]:
    """Seconds for each run of a batch, and for a run alone, in every round."""
    tuned = dataclasses.replace(make_run(task, contender, 0, STEPS), purpose="tune")
    runs = [dataclasses.replace(tuned, seed=seed) for seed in range(size)]
    alone = runs[:8]
    result: dict[str, list[float]] = {"batched": [], "alone": []}
    for _ in range(rounds):
        result["batched"].append(seconds(lambda: train_many(task, runs)) / size)
        result["alone"].append(seconds(lambda: [train(task, run) for run in alone]) / len(alone))
    return result


def measure(rounds: int, record: Path) -> None:
    """Every task, contender and size, written as soon as it is there."""
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "benchmark": "many runs in one program",
        "environment": {**records.environment(), "threads": 1},
        "steps": STEPS,
        "cases": [],
    }
    for name in TASKS:
        task = shortened(all_tasks()[name])
        for contender in CONTENDERS:
            timed(task, contender, 2, 1)  # the first calls load what they need
            for size in SIZES:
                case = {"task": name, "contender": contender, "together": size}
                result["cases"].append({**case, "seconds": timed(task, contender, size, rounds)})
                records.write(record, result)
                print(name, contender, size, ratio(result["cases"][-1]), flush=True)


def ratio(case: dict[str, Any]) -> str:
    """How many times as many runs a minute as one after the other: the median of the rounds, and their range."""
    ratios = [x / y for x, y in zip(case["seconds"]["alone"], case["seconds"]["batched"], strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"


def table(record: dict[str, Any]) -> str:
    """A Markdown table, a row for each task and contender; a case that an interruption left out is blank."""
    cases = {(case["task"], case["contender"], case["together"]): case for case in record["cases"]}
    rows = [
        "| runs together |" + "".join(f" {size} |" for size in SIZES) + " n |",
        "|---|" + "---:|" * (len(SIZES) + 1),
    ]
    for name in TASKS:
        for contender in CONTENDERS:
            found = [cases.get((name, contender, size)) for size in SIZES]
            rounds = min((len(case["seconds"]["alone"]) for case in found if case), default=0)
            cells = [ratio(case) if case else "" for case in found]
            rows.append(f"| {name}, {contender} | {' | '.join(cells)} | {rounds} |")
    return "\n".join(rows)


def main() -> None:
    """Measure unless told not to, then fill in from the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--record", type=Path, default=ROOT / "results/batched/batched.json")
    parser.add_argument("--render", action="store_true", help="do not measure, only fill in from the record")
    options = parser.parse_args()
    if not options.render:
        measure(options.rounds, options.record)
    record = json.loads(options.record.read_text(encoding="utf-8"))
    report.fill_in(ROOT / "docs/speed.md", "batched", table(record))


if __name__ == "__main__":
    main()
