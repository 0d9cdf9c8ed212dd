"""Fills in the tables of docs/speed.md from the records of ``make gpu-check``, and one of docs/results.md from that of
``make gpu-study``.

python benchmarks/gpu_table.py
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from hatam.bench import report

ROOT = Path(__file__).resolve().parent.parent
RECORDS = ROOT / "results/gpu"


def ratio(result: dict[str, Any]) -> str:
    """The median with its quartiles."""
    spread = result["ratio_to_adamw_fused"]
    return f"{spread['median']:.2f} ({spread['q1']:.2f}–{spread['q3']:.2f})"


def steps(speed: list[dict[str, Any]]) -> list[str]:
    """A row for every contender, a column for every model."""
    results = {(one["contender"], one["model"]): one for one in speed if one["part"] == "step"}
    contenders, models = (list(dict.fromkeys(key[i] for key in results)) for i in range(2))
    rows = [f"| step time / AdamW fused | {' | '.join(models)} |", "|---|" + "---:|" * len(models)]
    for contender in contenders:
        rows.append(f"| {contender} | {' | '.join(ratio(results[contender, model]) for model in models)} |")
    last = [f"{results[contenders[0], model]['ms']['median']:.2f}" for model in models]
    return [*rows, f"| {contenders[0]}, ms | {' | '.join(last)} |"]


def trainings(speed: list[dict[str, Any]]) -> list[str]:
    """A row for every model that was trained."""
    rows = ["| training step, bfloat16 autocast | HATAM / AdamW fused | AdamW fused, ms | n |", "|---|---:|---:|---:|"]
    for one in speed:
        if one["part"] == "training":
            rows.append(f"| {one['model']} | {ratio(one)} | {one['adamw_ms']['median']:.1f} | {one['n']} |")
    return rows


def text(records: Path = RECORDS) -> str:
    """Both tables, and where they come from."""
    speed, checks = (json.loads((records / f"{name}.json").read_text(encoding="utf-8")) for name in ("speed", "checks"))
    n = sorted({one["n"] for one in speed["speed"] if one["part"] == "step"})
    copy = next(one["gb_per_s"]["median"] for one in speed["speed"] if one["part"] == "copy")
    fastest = max(
        (one for one in speed["speed"] if one.get("contender") == "HATAM fused"), key=lambda one: one["parameters"]
    )
    about = (
        f"{speed['device']}, torch {speed['torch']}, Triton {speed['triton']}; n = {n[0]} to {n[-1]} rounds; "
        f"{sum(checks['checks'].values())} of {len(checks['checks'])} checks right. On {fastest['model']} "
        f"parameters the kernel moves {fastest['gb_per_s']['median']:,.0f} GB/s, where a copy moves {copy:,.0f}."
    )
    return "\n".join([about, "", *steps(speed["speed"]), "", *trainings(speed["speed"])])


def study(record: Path = RECORDS / "study.json") -> str:
    """A row for each contender whose runs are all there, means over the seeds."""
    found = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {"runs": {}}
    ended: dict[str, list[dict[str, Any]]] = {}
    for run in found["runs"].values():
        if "test" in run:
            ended.setdefault(run["contender"], []).append(run)
    if not ended:
        return "Not run here."
    rows = ["| contender | lr | n | test accuracy, % | training loss | gradients a step | seconds a run |"]
    rows.append("|---|" + "---:|" * 6)
    for name, runs in ended.items():
        means = {key: statistics.mean(float(run[key]) for run in runs) for key in ("test", "train_loss", "seconds")}
        cells = [name, f"{runs[0]['lr']:g}", f"{len(runs)}", f"{means['test']:.2f}", f"{means['train_loss']:.4f}"]
        rows.append(f"| {' | '.join([*cells, str(runs[0]['gradients_per_step']), format(means['seconds'], '.1f')])} |")
    return "\n".join([*rows, "", f"{found['device']}, torch {found['torch']}, {found['epochs']} epochs."])


def main() -> None:
    """Fill in."""
    report.fill_in(ROOT / "docs/speed.md", "gpu", text())
    report.fill_in(ROOT / "docs/results.md", "gpu-study", study())


if __name__ == "__main__":
    main()
