"""What observing the optimizer costs, and what it shows of a healthy training and of three that are not.

python benchmarks/telemetry.py             measure, write the records, draw, fill in docs/telemetry.md
python benchmarks/telemetry.py --render    draw and fill in from the records alone
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import matplotlib
import step_cost
from matplotlib.figure import Figure

from hatam import HATAM
from hatam.bench import records, report
from hatam.bench.theory.network import Training
from hatam.telemetry import Telemetry

ROOT = Path(__file__).resolve().parent.parent
COST, RUNS = ROOT / "results/telemetry/cost.json", ROOT / "results/telemetry/runs.json"
PAGE, FIGURE = ROOT / "docs/telemetry.md", ROOT / "docs/figures/telemetry.svg"
SHAPES = ("MLP, 1 k", "MLP, 100 k", "transformer, 3 M", "2,000 small, 2 M", "25 M")
KINDS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "too near, horizon 0.1": {"horizon": 0.1},
    "horizon 8": {"horizon": 8.0},
    "too far, γ = 2, horizon 100": {"gamma": 2.0, "horizon": 100.0},
}
SHOWN = {
    "offset_ratio": "‖κ u‖ / ‖w‖",
    "bend_update_cosine": "cos(c, last update)",
    "update_ratio": "‖update‖ / ‖w‖",
    "gap": "loss at w over loss at z",
}


def cost(shape: str, rounds: int = 15) -> dict[str, Any]:
    """How many steps one observation costs, in paired turns."""
    params = step_cost.parameters(shape)
    optimizer = step_cost.reaching(params)
    ratios = []
    for _ in range(rounds + 2):
        spent = []
        for every in (10**9, 1):
            telemetry = Telemetry(optimizer, every)
            start = time.perf_counter()
            optimizer.step()
            spent.append(time.perf_counter() - start)
            telemetry.detach()
        ratios.append(spent[1] / spent[0] - 1)
    quartiles = statistics.quantiles(ratios[2:], n=4)
    return {
        "shape": shape,
        "tensors": len(params),
        "steps": quartiles[1],
        "quartiles": [quartiles[0], quartiles[2]],
        "n": rounds,
    }


def observed(kind: str, every: int = 50) -> dict[str, Any]:
    """What telemetry says along a training."""
    options = {"betas": (0.9, 0.95), "weight_decay": 0.15, **KINDS[kind]}
    training = Training(lambda params: HATAM(params, **options), seed=0)
    telemetry = Telemetry(training.optimizer, every)
    curves: dict[str, list[float | None]] = {key: [] for key in SHOWN}
    for _ in training.run(every):
        found = telemetry.read()["groups"][0]
        losses = telemetry.losses(training.loss)
        found["gap"] = losses["loss_at_w"] / losses["loss_at_z"]
        for key, curve in curves.items():
            curve.append(found.get(key))
    with training.optimizer.straightened():
        return {"kind": kind, "every": every, "curves": curves, "validation": training.accuracy()}


def table(record: dict[str, Any]) -> str:
    lines = [
        "| parameters | tensors | one costs, in steps | of all steps at every=200 | n |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in record["costs"]:
        low, high = row["quartiles"]
        told = f"{row['steps']:.1f} ({low:.1f} to {high:.1f})"
        lines.append(f"| {row['shape']} | {row['tensors']:,} | {told} | {row['steps'] / 2:.1f}% | {row['n']} |")
    return "\n".join(lines) + "\n\nMedian and quartiles of paired turns, in steps of HATAM's fused path on the CPU."


def draw(record: dict[str, Any]) -> None:
    with matplotlib.rc_context({"svg.hashsalt": "hatam", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(7.2, 5), layout="constrained")
        for axes, (key, name) in zip(figure.subplots(2, 2).flat, SHOWN.items(), strict=True):
            for run in record["runs"]:
                at = [(run["every"] * (i + 1), y) for i, y in enumerate(run["curves"][key]) if isinstance(y, float)]
                label = f"{run['kind']}: {run['validation']:.0f}%"
                axes.plot([x for x, _ in at], [y for _, y in at], label=label if at else "")
            axes.set(xlabel="step", ylabel=name, yscale="linear" if key == "bend_update_cosine" else "log")
        figure.legend(*figure.axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        figure.savefig(FIGURE, metadata={"Date": None})


if __name__ == "__main__":
    if "--render" not in sys.argv[1:]:
        costs = [cost(shape) for shape in SHAPES]
        records.write(COST, {"environment": records.environment(), "costs": costs})
        records.write(RUNS, {"environment": records.environment(), "runs": [observed(kind) for kind in KINDS]})
    draw(json.loads(RUNS.read_text(encoding="utf-8")))
    report.fill_in(PAGE, "telemetry", table(json.loads(COST.read_text(encoding="utf-8"))))
