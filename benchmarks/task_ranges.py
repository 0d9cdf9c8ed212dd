"""What scores the tasks allow: AdamW over three seeds and a linear model on the same splits, and what a run costs.

    python benchmarks/task_ranges.py                 measure every task but the larger ones, fill in docs/tasks.md
    python benchmarks/task_ranges.py digits bytes    measure these alone
    python benchmarks/task_ranges.py --render        fill in from the records alone

The linear model is logistic or ridge regression on the flattened inputs, its strength chosen on the validation split;
for the tokens of MiniLM it is logistic regression on their counts, and for bytes the table of which byte follows which.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.linear_model import LogisticRegression, Ridge

from hatam.bench import records, report
from hatam.bench.cli import make_run
from hatam.bench.tasks import Data, Split, Task, all_tasks
from hatam.bench.training import train

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "results/tasks"
SEEDS = 3
LARGER = ("fashion-whole", "bytes-large")  # hours each; larger.py has them
STRENGTHS = tuple(10.0**k for k in range(-4, 3))


def measure(task: Task) -> dict[str, Any]:
    """A record: the sizes, AdamW's runs, the linear model's scores."""
    data = task.data()
    return {
        "benchmark": "task ranges",
        "environment": {**records.environment(), "threads": torch.get_num_threads()},
        "task": task.name,
        "samples": {name: len(split.y) for name, split in data._asdict().items()},
        "parameters": sum(p.numel() for p in task.model().parameters()),
        "metric": task.metric_name,
        "budget": {"steps": task.steps, "batch_size": task.batch_size},
        "options": make_run(task, "adamw", 0).options,
        "runs": [timed(task, seed) for seed in range(SEEDS)],
        "linear": baseline(task, data),
    }


def timed(task: Task, seed: int) -> dict[str, Any]:
    """A run's results, and the processor's seconds for its steps and for all of it."""
    start, started = time.process_time(), time.time()
    record = train(task, make_run(task, "adamw", seed))
    cpu, wall = time.process_time() - start, time.time() - started
    return {"seed": seed, **record["result"], "cpu_s": cpu, "wall_s": wall, "steps_wall_s": record["time"]["steps_s"]}


def baseline(task: Task, data: Data) -> dict[str, float]:
    """The linear model's mean scores on validation and test."""
    if task.metric_name == "bits per byte":
        return bigrams(data)
    regression = data.train.y.is_floating_point()
    fitted = []
    for strength in STRENGTHS:
        model = Ridge(1 / strength) if regression else LogisticRegression(C=strength, max_iter=2000)
        model.fit(features(data.train), data.train.y.numpy())
        fitted.append(({name: score(task, model, split) for name, split in data._asdict().items()}, strength))
    best = max if task.higher_is_better else min
    scores, strength = best(fitted, key=lambda pair: pair[0]["validation"])
    return {"validation": scores["validation"], "test": scores["test"], "strength": strength}


def features(split: Split) -> Any:
    """Inputs as rows; tokens as their counts."""
    if split.x.is_floating_point():
        return split.x.flatten(1).numpy()
    rows, places = np.nonzero(split.x.numpy())
    tokens = split.x.numpy()[rows, places]
    return sparse.csr_matrix((np.ones(len(rows)), (rows, tokens)), shape=(len(split.x), 30_522))


def score(task: Task, model: Any, split: Split) -> float:
    """The task's own metric of what a fitted model says."""
    said = model.predict_log_proba if hasattr(model, "predict_log_proba") else model.predict
    outputs = torch.from_numpy(said(features(split))).float().reshape(len(split.y), -1)
    return float(task.metric(outputs, split.y).mean())


def bigrams(data: Data) -> dict[str, float]:
    """Bits per byte where every byte's probability follows from the one before it, with one more count for each."""
    counts = torch.ones(256, 256).index_put((data.train.x, data.train.y), torch.ones(()), accumulate=True)
    bits = -(counts / counts.sum(1, keepdim=True)).log2()
    return {name: float(bits[split.x, split.y].mean()) for name, split in data._asdict().items() if name != "train"}


def table(found: list[dict[str, Any]]) -> str:
    """A Markdown table, a row for each task."""
    head = ["task", "train / validation / test", "parameters", "steps × batch", "score"]
    head += ["AdamW, test", "AdamW, training data", "linear, test", "CPU s a run"]
    rows = [f"| {' | '.join(head)} |", "|---|" + "---:|" * 3 + "---|" + "---:|" * 4]
    for record in found:
        runs = record["runs"]
        digits = 1 if record["metric"].endswith("%") else 3
        tests = [run["test"] for run in runs]
        cells = [record["task"], " / ".join(f"{n:,}" for n in record["samples"].values()), f"{record['parameters']:,}"]
        cells += ["{steps:,} × {batch_size}".format(**record["budget"]), record["metric"]]
        cells.append(f"{statistics.mean(tests):.{digits}f} ({min(tests):.{digits}f}–{max(tests):.{digits}f})")
        cells.append(f"{statistics.mean(run['train'] for run in runs):.{digits}f}")
        cells.append(f"{record['linear']['test']:.{digits}f}")
        cells.append(f"{statistics.median(run['cpu_s'] for run in runs):.2g}")
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def read(folder: Path = RECORDS) -> list[dict[str, Any]]:
    """The records there are, in the order of the tasks."""
    paths = [folder / f"{name}.json" for name in all_tasks()]
    return [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]


def main() -> None:
    """Measure unless told not to, then fill in from the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", help="default: every task that can run here")
    parser.add_argument("--render", action="store_true", help="do not measure, only fill in from the records")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for task in [] if options.render else all_tasks().values():
        if task.name not in options.tasks if options.tasks else task.name in LARGER:
            continue
        if missing := task.missing():
            print(f"{task.name} is left out: {missing}", flush=True)
            continue
        record = measure(task)
        records.write(RECORDS / f"{task.name}.json", record)
        print(table([record]).splitlines()[-1], flush=True)
    report.fill_in(ROOT / "docs/tasks.md", "task-ranges", table(read()))


if __name__ == "__main__":
    main()
