"""HATAM untuned: swapped in for AdamW at AdamW's tuned options, with what could be its defaults, task by task.

Only HATAM's own options are added. A first round compared candidates on validation data at what a first search had
found for AdamW (``results/untuned/adamw.json``), and its choice was judged on test data at AdamW's winning options of
the study (``results/full/cells``). A second round compared candidates at those options, again on validation data; its
choice and then a smaller γ were judged likewise, on slow tasks too. A third round compared γ as the norm of the whole
displacement, before that was made to begin small and to grow slowly; a fourth, with both, at these options and where
AdamW has its usual betas and weight decay and its lr alone was tuned; a fifth gave each tensor its share of the norm by
its weights, no longer by its size. Its choice was judged at torch's own β2 of 0.999 too, and harmed at low lr; the
sixth caps the radius there. The default comes from these two. Each choice is judged once, on seeds that no other
choice was made or judged on. `hatam` of the third and the fourth round, and the default of those before the sixth,
cannot be measured again: their records are all that is left.

    python benchmarks/untuned.py              measure what has no record yet, fill in the pages
    python benchmarks/untuned.py --render     fill in from the records alone
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import grids

from hatam.bench import report
from hatam.bench.cli import make_run
from hatam.bench.records import Run
from hatam.bench.tasks import all_tasks, find

ROOT = grids.ROOT / "results/untuned"
DEFAULT = "hatam:gamma=None"  # what the optimizer takes by itself


class Round(NamedTuple):
    """Who is compared, where, and on what."""

    candidates: tuple[str, ...]
    folder: Path
    purpose: str
    first_seed: int  # no stage of the study has these
    seeds: int
    slow: int  # seeds of a slow task


FIRST = (
    "hatam-lr:gamma=1.0",
    "hatam-relative:modulator_cap=3.0,gamma=0.03",
    "hatam-relative:gamma=0.02",
    "hatam-relative:gamma=0.03",
    "hatam-relative:gamma=0.05",
    "atam-decoupled:gamma=0.03",
    "atam-decoupled:gamma=0.05",
)
SECOND = (
    "hatam-relative:gamma=0.03",
    "hatam-relative:gamma=0.02",
    "hatam-relative:gamma=0.01",
    "hatam-relative:gamma=0.02,beta_c=0.9",
    "hatam-relative:gamma=0.03,beta_c=0.9",
    "hatam-relative:gamma=0.05,beta_c=0.9",
    "hatam-relative:gamma=0.1,beta_c=0.9",
)
THIRD = ("hatam:gamma=0.1", "hatam:gamma=0.2", "hatam:gamma=0.3")
FOURTH = tuple(f"hatam:gamma={gamma}" for gamma in ("0.5", "0.7", "1", "0.5,beta_c=0.9", "0.7,beta_c=0.9"))
FIFTH = tuple(f"hatam:gamma={gamma}" for gamma in ("0.2", "0.35", "0.5", "0.7"))
SIXTH = (*FIFTH[1:3], DEFAULT)  # where γ is given, there is no cap
ROUNDS = {
    "first": Round(("adamw", *FIRST), ROOT / "records", "tune", 6000, 10, 4),
    "first, judged": Round(("adamw", "hatam-relative"), ROOT / "records", "final", 7000, 20, 0),
    "second": Round(("adamw", *SECOND), ROOT / "second", "tune", 6100, 10, 0),
    "second, judged": Round(("adamw", "hatam-relative:gamma=0.02"), ROOT / "second-judged", "final", 7100, 20, 8),
    "0.005, judged": Round(("adamw", "hatam-relative:gamma=0.005"), ROOT / "judged", "final", 7200, 20, 8),
    "third": Round(("adamw", *THIRD), ROOT / "third", "tune", 6200, 10, 3),
    "third, judged": Round(("adamw", "hatam:gamma=0.2"), ROOT / "third-judged", "final", 7300, 40, 8),
    "third, usual": Round(("adamw", "hatam:gamma=0.2"), ROOT / "third-usual", "final", 7400, 20, 0),
    "fourth": Round(("adamw", *FOURTH), ROOT / "fourth", "tune", 6300, 8, 3),
    "fourth, usual": Round(("adamw", *FOURTH[:3]), ROOT / "fourth-usual", "tune", 6300, 10, 3),
    "fourth, judged": Round(("adamw", DEFAULT), ROOT / "fourth-judged", "final", 7500, 20, 0),
    "by size, judged": Round(("adamw", DEFAULT), ROOT / "by-size", "final", 7700, 20, 5),
    "by size, usual": Round(("adamw", DEFAULT), ROOT / "by-size-usual", "final", 7600, 20, 5),
    "fifth": Round(("adamw", *FIFTH[:3]), ROOT / "fifth", "tune", 6600, 8, 2),
    "fifth, usual": Round(("adamw", *FIFTH[2:]), ROOT / "fifth-usual", "tune", 6600, 8, 2),
    "without a cap, judged": Round(("adamw", DEFAULT), ROOT / "default", "final", 7800, 20, 5),
    "without a cap, usual": Round(("adamw", DEFAULT), ROOT / "usual", "final", 7900, 20, 5),
    "without a cap, torch's": Round(("adamw", DEFAULT), ROOT / "torchs", "final", 8100, 10, 2),
    "sixth": Round(("adamw", *SIXTH), ROOT / "sixth", "tune", 6950, 10, 0),
    "sixth, usual": Round(("adamw", *SIXTH), ROOT / "sixth-usual", "tune", 6950, 10, 0),
    "sixth, torch's": Round(("adamw", *SIXTH), ROOT / "sixth-torchs", "tune", 6950, 10, 0),
    "judged": Round(("adamw", DEFAULT), ROOT / "capped", "final", 8200, 20, 5),
    "judged, usual": Round(("adamw", DEFAULT), ROOT / "capped-usual", "final", 8300, 20, 5),
    "judged, torch's": Round(("adamw", DEFAULT), ROOT / "capped-torchs", "final", 8400, 10, 2),
}
PRESENT = {"sixth", "sixth, usual", "sixth, torch's", "judged", "judged, usual", "judged, torch's"}
"""The others are as they were: what was compared there is no more, or AdamW's options are others since."""


def adamw_of(name: str) -> Mapping[str, Any]:
    """AdamW's options by task, as a round knows them."""
    if name == "first":
        return dict(json.loads((ROOT / "adamw.json").read_text(encoding="utf-8")))
    alone = "search-1" if "usual" in name or "torch" in name else None
    found = {task: grids.tuned(task, "adamw", alone=alone) for task in all_tasks()}
    changed = {"beta2": 0.999} if "torch" in name else {}
    return {task: options | changed for task, options in found.items() if options}


def runs(name: str) -> list[Run]:
    """Of a round."""
    this, found = ROUNDS[name], []
    for task, options in adamw_of(name).items():
        seeds = this.slow if task in grids.SLOW else this.seeds
        for spec in this.candidates:
            made = make_run(find(task), spec, 0)
            for seed in range(this.first_seed, this.first_seed + seeds):
                changed = {"options": made.options | options, "seed": seed, "purpose": this.purpose}
                found.append(dataclasses.replace(made, **changed))
    return found


def table(name: str = "first") -> str:
    """A row for each candidate: mean validation score, its standard error, and how it compares to AdamW."""
    this = ROUNDS[name]
    found = grids.scores(this.folder)
    tasks = [task for task in all_tasks() if (task, "adamw") in found]
    rows = {
        spec: [grids.compared(found.get((task, spec), {}), found[task, "adamw"], task) for task in tasks]
        for spec in this.candidates
    }
    return f"{grids.table('', tasks, rows)}\n\n{grids.counts(found)}"


def judged(name: str = "judged") -> str:
    """The default of a round on test data."""
    return report.brief(ROUNDS[name].folder, ROUNDS[name].candidates).replace(DEFAULT, "hatam")


def measure(jobs: int) -> None:
    """The present rounds'."""
    for name in (name for name in ROUNDS if name in PRESENT):
        grids.measure(runs(name), ROUNDS[name].folder, jobs)


PAGES = {
    "untuned-first": ("docs/log.md", lambda: judged("first, judged")),
    "untuned-second": ("docs/log.md", lambda: table("second")),
    "untuned-second-judged": ("docs/log.md", lambda: judged("second, judged")),
    "untuned-relative-judged": ("docs/log.md", lambda: judged("0.005, judged")),
    "untuned-third": ("docs/log.md", lambda: table("third")),
    "untuned-third-judged": ("docs/log.md", lambda: judged("third, judged")),
    "untuned-third-usual": ("docs/log.md", lambda: judged("third, usual")),
    "untuned-fourth": ("docs/log.md", lambda: table("fourth")),
    "untuned-fourth-usual": ("docs/log.md", lambda: table("fourth, usual")),
    "untuned-fourth-judged": ("docs/log.md", lambda: judged("fourth, judged")),
    "untuned-size-judged": ("docs/log.md", lambda: judged("by size, judged")),
    "untuned-size-usual": ("docs/log.md", lambda: judged("by size, usual")),
    "untuned-fifth": ("docs/log.md", lambda: table("fifth")),
    "untuned-fifth-usual": ("docs/log.md", lambda: table("fifth, usual")),
    "untuned-fifth-judged": ("docs/log.md", lambda: judged("without a cap, judged")),
    "untuned-fifth-judged-usual": ("docs/log.md", lambda: judged("without a cap, usual")),
    "untuned-fifth-judged-torchs": ("docs/log.md", lambda: judged("without a cap, torch's")),
    "untuned-sixth": ("docs/log.md", lambda: table("sixth")),
    "untuned-sixth-usual": ("docs/log.md", lambda: table("sixth, usual")),
    "untuned-sixth-torchs": ("docs/log.md", lambda: table("sixth, torch's")),
    "untuned": ("docs/results.md", judged),
    "untuned-usual": ("README.md", lambda: judged("judged, usual")),
    "untuned-torchs": ("docs/log.md", lambda: judged("judged, torch's")),
}
"""What is shown beside the first round's table: where, and how it is made."""

if __name__ == "__main__":
    grids.main(__doc__, "untuned", measure, table)
    for marker, (page, rendered) in PAGES.items():
        report.fill_in(grids.ROOT / page, marker, rendered())
