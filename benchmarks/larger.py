"""AdamW, SAM, Schedule-Free AdamW and HATAM on the two larger tasks.

Everyone has the harness's defaults with AdamW's weight decay. lr, and SAM's ρ, are chosen by validation on one shorter
run for each value; then each trains with three other seeds. It takes hours, and goes on where it was:
``python benchmarks/larger.py --jobs 2``. With --render it fills in docs/results.md from the record alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch

from hatam.bench import files, report
from hatam.bench.contenders import parse
from hatam.bench.records import Run
from hatam.bench.running import end_with_parent
from hatam.bench.stats import paired
from hatam.bench.tasks import corpus, find, ready
from hatam.bench.tasks.splits import digest
from hatam.bench.training import train

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "results/larger.json"
LRS = {"fashion-whole": (0.001, 0.003, 0.01, 0.03), "bytes-large": (0.0005, 0.001, 0.002, 0.004)}
SEARCH_STEPS = {"fashion-whole": 429, "bytes-large": 800}  # a quarter, and half
RADII = {"sam": (",rho=0.05", ",rho=0.1"), "adamw": ("",), "schedule-free": ("",), "hatam": ("",)}  # the longest first
SEARCH, SEEDS = 30000, (31000, 31001, 31002)  # no other script has these


class Job(NamedTuple):
    """A run."""

    task: str
    contender: str
    options: str
    seed: int
    steps: int


def search(task: str) -> dict[str, list[Job]]:
    """By contender, a run for each lr, and each ρ."""
    specs = {name: [f"lr={lr}{rho}" for rho in radii for lr in LRS[task]] for name, radii in RADII.items()}
    return {name: [Job(task, name, spec, SEARCH, SEARCH_STEPS[task]) for spec in specs[name]] for name in specs}


def final(task: str, runs: dict[str, Any]) -> dict[str, list[Job]]:
    """By contender, three runs with the options that were best on validation data; none before the search has ended."""
    searched, sign = search(task), 1 if find(task).higher_is_better else -1
    if any(str(job) not in runs for jobs in searched.values() for job in jobs):
        return {}

    def score(job: Job) -> tuple[bool, float]:
        return runs[str(job)]["status"] == "ok", sign * float(runs[str(job)]["validation"])

    best = {name: max(jobs, key=score) for name, jobs in searched.items()}
    return {name: [job._replace(seed=seed, steps=find(task).steps) for seed in SEEDS] for name, job in best.items()}


def do(job: Job) -> dict[str, Any]:
    """Train; with the seeds of the end, score on the test data too."""
    torch.set_num_threads(1)
    task, stage = find(job.task), "search" if job.seed == SEARCH else "final"
    _, options = parse(f"{job.contender}:{job.options}", job.task)
    made = train(task, Run(*job[:2], job.contender, options, *job[3:], task.batch_size, task.warmup, stage=stage))
    kept = ("status", "validation", "test", "train_loss", "gradients_per_step", "step_s", "seconds", "curve")
    found = {key: made.get(key) for key in kept if stage == "final" or key != "test"}
    return files.jsonable({**job._asdict(), "test": None, **found, "every_option": options})


def do_all(jobs: dict[str, list[Job]], processes: int, record: dict[str, Any]) -> None:
    """Do what has no record; the record is written whole after each run."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=end_with_parent) as pool:
        todo = {pool.submit(do, job): job for each in jobs.values() for job in each if str(job) not in record["runs"]}
        for ended in as_completed(todo):
            record["runs"][str(todo[ended])] = ended.result()
            files.write(RECORD, record)
            print(todo[ended], ended.result()["validation"], flush=True)


def table(runs: dict[str, Any]) -> str:
    """A row for each contender on each task whose runs are all there."""
    head = f"test, {len(SEEDS)} seeds | − AdamW, 95% interval | training loss | gradients a step"
    rows = [f"| task | contender | chosen | {head} |", "|---|---|---|" + "---:|" * 4]
    for task in LRS:
        found = {name: [runs.get(str(job), {}) for job in jobs] for name, jobs in final(task, runs).items()}
        for name, each in sorted(found.items()) if all(map(all, found.values())) else ():
            score, base = ({run["seed"]: float(run["test"]) for run in found[key]} for key in (name, "adamw"))
            less = paired(score, base) if name != "adamw" else None
            cells = [f"{task}, {find(task).metric_name}", name, each[0]["options"], f"{mean(score.values()):.4g}"]
            cells.append(f"{less.mean:+.3g} [{less.low:+.3g}, {less.high:+.3g}]" if less else "")
            for key, form in (("train_loss", ".4f"), ("gradients_per_step", ".2f")):
                cells.append(format(mean(float(run[key]) for run in each), form))
            rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows) if len(rows) > 2 else "Not run here."


def main() -> None:
    """Do the runs, then fill in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each (default 1)")
    parser.add_argument("--render", action="store_true", help="run nothing, fill in from the record")
    options = parser.parse_args()
    runs = json.loads(RECORD.read_text(encoding="utf-8"))["runs"] if RECORD.exists() else {}
    if not options.render:
        data = {task: digest(ready(task).data()) for task in LRS}
        record = {"environment": files.environment(), "versions": corpus.versions(), "data": data, "runs": runs}
        for task in LRS:
            do_all(search(task), options.jobs, record)
            do_all(final(task, runs), options.jobs, record)
    report.fill_in(ROOT / "docs/results.md", "larger", table(runs))


if __name__ == "__main__":
    main()
