"""In what unit the study's best radius is the same for small networks and large ones: docs/log.md.

Tuned in units of the weights (`hatam-relative`), the winner's γ of each task, and what norm that is of the displacement
where training starts: γ ‖w_0‖, over all parameters. Beside it the winner's γ of `hatam`, which is that norm.

    python benchmarks/norms.py
"""

from __future__ import annotations

from statistics import fmean

import grids
import torch

from hatam.bench import report
from hatam.bench.study.plans import PLANS
from hatam.bench.tasks import all_tasks, find
from hatam.norms import of_params

SEEDS = 3  # of the first weights


def table() -> str:
    """A row for each task, from small networks to large."""
    rows = []
    for name in all_tasks():
        options, as_norm = (grids.tuned(name, contender) for contender in ("hatam-relative", "hatam"))
        if options and as_norm and name in PLANS["full"].resolved(all_tasks())[0].tasks:
            models = []
            for seed in range(SEEDS):
                torch.manual_seed(seed)
                models.append(find(name).model())
            starts = [of_params(model.parameters()) for model in models]
            norm, gamma = fmean(start.norm if start else 0.0 for start in starts), options["gamma"]
            count = sum(p.numel() for p in models[0].parameters())
            cells = f"{name} | {count:,} | {norm:.3g} | {gamma:.2g} | {gamma * norm:.2g} | {as_norm['gamma']:.3g}"
            rows.append((count, f"| {cells} |"))
    head = "| task | parameters | ‖w_0‖ | γ, of the weights | γ ‖w_0‖ | γ as a norm |\n|---|---:|---:|---:|---:|---:|"
    return "\n".join([head, *(row for _, row in sorted(rows))])


if __name__ == "__main__":
    report.fill_in(grids.ROOT / "docs/log.md", "norms", table())
