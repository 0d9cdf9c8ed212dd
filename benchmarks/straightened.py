"""w against z where a schedule does not end at 0: validation scores at both points, at HATAM's winning options.

python benchmarks/straightened.py             measure what has no record yet, fill in docs/log.md
python benchmarks/straightened.py --render    fill in from the record alone
"""

from __future__ import annotations

import json
import math
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import grids
import torch

from hatam.bench import records
from hatam.bench.cli import make_run
from hatam.bench.stats import paired
from hatam.bench.tasks import find
from hatam.bench.training import evaluate, prepare

RECORD = grids.ROOT / "results/straightened/straightened.json"
TASKS = ("mnist1d-mlp", "mnist1d-mlp-plain", "mnist1d-mlp-noise", "digits-noise")
FLOORS = (0.0, 0.05, 0.2, 1.0)  # of the peak lr, where the cosine ends
SEEDS = range(5000, 5010)  # no stage of the study has these
Job = tuple[str, float, int]


def ends(job: Job) -> dict[str, Any]:
    """Train with a cosine that ends at a share of the peak; the validation score at w and at z."""
    name, floor, seed = job
    torch.set_num_threads(1)
    task, run = find(name), make_run(find(name), "hatam-relative", seed)
    options = grids.tuned(name, "hatam-relative")
    run = type(run)(**{**vars(run), "options": options})
    trainer, data = prepare(task, run), task.data()
    rng = torch.Generator().manual_seed(seed)
    rising = max(1, round(task.warmup * task.steps))
    for step in range(task.steps):
        fall = (1 + math.cos(math.pi * max(0, step - rising + 1) / (task.steps - rising))) / 2
        factor = min(1.0, (step + 1) / rising) * (floor + (1 - floor) * fall)
        for group in trainer.optimizer.param_groups:
            group["lr"] = options["lr"] * factor
        chosen = torch.randint(len(data.train.y), (task.batch_size,), generator=rng)
        trainer.step(data.train.x[chosen], data.train.y[chosen])
    at_w = evaluate(task, trainer.model, data.validation)
    with trainer.evaluation():
        return {
            "task": name,
            "floor": floor,
            "seed": seed,
            "w": at_w,
            "z": evaluate(task, trainer.model, data.validation),
        }


def measure(jobs: int) -> None:
    """Those that have no record yet."""
    found = json.loads(RECORD.read_text(encoding="utf-8"))["runs"] if RECORD.exists() else []
    done = {(run["task"], run["floor"], run["seed"]) for run in found}
    missing = [(t, f, s) for t in TASKS for f in FLOORS for s in SEEDS if (t, f, s) not in done]
    with ProcessPoolExecutor(jobs) as pool:
        for run in pool.map(ends, missing):
            found.append(run)
            records.write(RECORD, {"environment": records.environment(), "runs": found})


def table() -> str:
    """A row for each task and end of the schedule."""
    runs = json.loads(RECORD.read_text(encoding="utf-8"))["runs"]
    lines = ["| task | lr at the end, of its peak | at w | at z | z − w | n |", "|---|---:|---:|---:|---:|---:|"]
    for name in TASKS:
        for floor in FLOORS:
            some = [run for run in runs if run["task"] == name and run["floor"] == floor]
            w, z = ({run["seed"]: run[key] for run in some} for key in ("w", "z"))
            difference = paired(z, w)
            said = "0" if w == z else f"{difference.mean:+.2f} [{difference.low:+.2f}, {difference.high:+.2f}]"
            cells = (name, f"{floor:g}", grids.cell(w.values()), grids.cell(z.values()), said, str(len(some)))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    grids.main(__doc__, "straightened", measure, table)
