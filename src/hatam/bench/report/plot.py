"""The one plot of a task that `hatam compare` and the documents show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from ..records import file_name
from .load import number
from .tables import Row


def draw(task: str, table: Sequence[Row], out: Path) -> list[Path]:
    """Learning curves, and accuracy against measured cost, as PNG and SVG."""
    colours = dict(zip([row.label for row in table], cycle(mpl.colormaps["tab20"].colors)))  # type: ignore[attr-defined]
    figure, (curves, cost) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
    for row in table:
        _draw_curve(curves, row, colours[row.label])
        if row.relative_time is not None:
            error = 0.0 if row.score.n < 2 else row.score.half_width
            cost.errorbar(row.relative_time, row.score.mean, yerr=error, fmt="o", color=colours[row.label])
            cost.annotate(row.label, (row.relative_time, row.score.mean), (5, 4), textcoords="offset points", size=8)
    curves.set(xlabel="step", ylabel="validation, mean over seeds", title=task)
    curves.legend(fontsize=8)
    cost.set(xlabel="measured time per step, AdamW = 1", ylabel="test, mean and 95% interval", title="quality and cost")
    cost.margins(x=0.25)
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"{file_name(task)}.{kind}" for kind in ("png", "svg")]
    with mpl.rc_context({"svg.hashsalt": task}):
        figure.savefig(paths[0], dpi=120)
        figure.savefig(paths[1], metadata={"Date": None})
    plt.close(figure)
    return paths


def _draw_curve(axes: Axes, row: Row, colour: Any) -> None:
    points: dict[int, list[float]] = defaultdict(list)
    for record in row.records:
        for point in record["curve"]:
            points[point["step"]].append(number(point["validation"]))
    steps = sorted(points)
    axes.plot(steps, [sum(points[step]) / len(points[step]) for step in steps], label=row.label, color=colour)
