"""What keeps a radius from falling off the cliff: a start with v, and a scale that grows slowly.

The norm of the whole displacement is 1, by size in every tensor, or begins at 0.5, by its weights. Its size is that of
the present step, which takes a second pass over memory, or one step old; it may be full from the first step on, grow
with lr's warm-up, which an optimizer cannot know, or as √(1 − β2^t). Validation accuracy on the two tasks whose cliff
is nearest, at AdamW's usual options with its lr tuned, and at two β2.

    python benchmarks/steady.py               try what has no record yet, fill in docs/log.md
    python benchmarks/steady.py --render      fill in from the records alone
"""

from __future__ import annotations

import json
from typing import Any

import grids
import torch
from rules import Rule, one, tried

from hatam.bench import records
from hatam.bench.tasks import find

RECORDS = grids.ROOT / "results/steady"
FIRST_SEED, SEEDS = 6400, 4  # no stage of the study has these
COLUMNS = [(task, beta2) for task in ("mnist1d-conv", "mnist1d-conv-noise") for beta2 in (0.95, 0.999)]
SIZE: dict[str, Any] = {"norm": "size", "cap": 1.0}
OLD: dict[str, Any] = {"norm": "weights", "cap": 1.0, "old": True}
RULES = {
    "adamw": Rule("AdamW", 0.0, one),
    "present": Rule("1: present size, full from the start", 1.0, one, **SIZE, start="full"),
    "present-lr": Rule("1: present size, with lr's warm-up", 1.0, one, **SIZE),
    "old": Rule("1: old size, full from the start", 1.0, one, **SIZE, old=True, start="full"),
    "old-v": Rule("1: old size, √(1 − β2^t)", 1.0, one, **SIZE, old=True, start="v"),
    "old-slow": Rule("1: old size growing by 1%, full", 1.0, one, **SIZE, old=True, growth=1.01, start="full"),
    "old-slow-v": Rule("1: old size growing by 1%, √(1 − β2^t)", 1.0, one, **SIZE, old=True, growth=1.01, start="v"),
    "weights": Rule("0.5, by weights: old size, full from the start", 0.5, one, **OLD, start="full"),
    "weights-v": Rule("0.5, by weights: old size growing by 1%, √(1 − β2^t)", 0.5, one, **OLD, growth=1.01, start="v"),
    "default": Rule("0.5, by weights: old size growing by 0.3%, √(1 − β2^t)", 0.5, one, **OLD, growth=1.003, start="v"),
}


def measure() -> None:
    """Try every rule, each written as soon as it is there."""
    torch.set_num_threads(1)
    seeds = list(range(FIRST_SEED, FIRST_SEED + SEEDS))
    for name, beta2 in COLUMNS:
        options = {**(grids.tuned(name, "adamw", alone="search-1") or {}), "beta2": beta2}
        for key, rule in RULES.items():
            path = RECORDS / name / f"{key}-{beta2}.json"
            if path.exists():
                continue
            scores = tried(find(name), rule, seeds, options)
            found = {"benchmark": "steady", "environment": records.environment(), "rule": rule.words, "seeds": seeds}
            records.write(path, {**found, "options": options, "validation": scores})
            print(name, beta2, rule.words, grids.cell(scores), flush=True)


def table() -> str:
    """A row for each rule; + and − as elsewhere, beside AdamW."""
    rows: dict[str, list[str]] = {rule.words: [] for rule in RULES.values()}
    for name, beta2 in COLUMNS:
        paths = {key: RECORDS / name / f"{key}-{beta2}.json" for key in RULES}
        scores = {
            key: dict(enumerate(json.loads(path.read_text(encoding="utf-8"))["validation"]))
            for key, path in paths.items()
        }
        for key, rule in RULES.items():
            rows[rule.words].append(grids.compared(scores[key], scores["adamw"], name))
    return grids.table("norm, its size and start", [f"{name}, β2 {beta2}" for name, beta2 in COLUMNS], rows)


if __name__ == "__main__":
    grids.main(__doc__, "steady", lambda jobs: measure(), table)
