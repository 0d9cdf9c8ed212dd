"""The figures: differences to the baseline by task, learning curves, and score against cost."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..stats import estimate
from ..terminal import plain
from .tables import order

# After Okabe and Ito, in luminances that show on white and on near black; a marker tells more than a colour.
COLOURS = ("#777777", "#d55e00", "#0072b2", "#008a68", "#b5568f", "#a87900", "#3b93c9", "#7a5cc7")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p", "h")
GREY = "#808080"  # text and axes: it shows on a light page and on a dark one
SETTINGS: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), GREY),
    "font.size": 9,
    "text.parse_math": False,  # a $ in a label is a $
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "grid.color": "#8886",
    "grid.linewidth": 0.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "hatam",  # the same figure gives the same bytes
}


def differences(rows: pd.DataFrame, labels: Sequence[str], path: Path) -> Path:
    """Difference to the baseline on each task, in standard errors of a seed's difference, with its 95% interval.

    The tasks have other units; each difference is divided by the largest half width of an interval on its task, so that
    an interval is at most 1 wide to either side. Right is better.
    """
    tasks = list(dict.fromkeys(rows["task"]))
    with drawing():
        figure = Figure(figsize=(6.4, 0.6 + 0.17 * len(tasks) * max(2, len(labels))))
        axes = figure.add_subplot()
        for row, task in enumerate(tasks):
            group = rows[rows["task"] == task].set_index("label")
            unit = float((group["d_high"] - group["difference"]).reindex(labels).max())
            for index, label in enumerate(labels):
                if label in group.index and unit > 0:
                    one = group.loc[label]
                    sign = 1 if one["higher_is_better"] else -1
                    y = row + (index - (len(labels) - 1) / 2) * 0.8 / len(labels)
                    half = (one["d_high"] - one["difference"]) / unit
                    colour, marker = look(index + 1)
                    name = label if row == 0 else None
                    centre = sign * one["difference"] / unit
                    axes.errorbar(centre, y, xerr=half, fmt=marker, ms=4, lw=1, color=colour, label=name)
        axes.axvline(0, color=GREY, lw=1)
        axes.set(yticks=range(len(tasks)), yticklabels=list(map(plain, tasks)), ylim=(len(tasks) - 0.5, -0.5))
        axes.set_xlabel(f"better than {rows['baseline'].iloc[0]} →  (units of the widest interval of a task)")
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, frameon=False)
        return save(figure, path)


def curves(records: pd.DataFrame, path: Path) -> Path | None:
    """Validation score over the steps on one task: the mean over seeds and, as a band, its 95% interval."""

    def draw(axes: Axes, own: pd.DataFrame, index: int, label: str) -> bool:
        whole = [json.loads(text) for text in own["curve"] if isinstance(text, str) and text != "[]"]
        lengths = {len(curve) for curve in whole}
        if not whole or len(lengths) > 1:  # one that diverged has fewer points
            whole = [curve for curve in whole if len(curve) == max(lengths)]
        if not whole:
            return False
        values = np.array([[float(point[2]) for point in curve] for curve in whole]).T
        found = [estimate(list(at)) for at in values]
        steps, (colour, marker) = [point[0] for point in whole[0]], look(index)
        axes.plot(steps, [e.mean for e in found], marker, ls="-", lw=1.2, ms=3, color=colour, label=plain(label))
        axes.fill_between(steps, [e.low for e in found], [e.high for e in found], color=colour, alpha=0.15, lw=0)
        return True

    return _by_label(records, path, draw, "step", f"validation {records['metric'].iloc[0]}")


def cost(records: pd.DataFrame, path: Path) -> Path | None:
    """Test score against the time of a step on one task: means over seeds with 95% intervals, and medians."""

    def draw(axes: Axes, own: pd.DataFrame, index: int, label: str) -> bool:
        scores = [x for x in own["test"] if math.isfinite(x)]
        seconds = float(own["step_s"].median())
        if not scores or not math.isfinite(seconds):
            return False
        e, (colour, marker) = estimate(scores), look(index)
        half = None if e.n < 2 else e.half_width
        axes.errorbar(1e3 * seconds, e.mean, yerr=half, fmt=marker, color=colour, lw=1, label=plain(label))
        return True

    return _by_label(records, path, draw, "time of a step, ms", f"test {records['metric'].iloc[0]}")


def _by_label(
    records: pd.DataFrame,
    path: Path,
    draw: Callable[[Axes, pd.DataFrame, int, str], bool],
    x_label: str,
    y_label: str,
) -> Path | None:
    """A figure with something for each label; None where there is nothing to draw."""
    with drawing():
        figure = Figure(figsize=(6.4, 3.6))
        axes = figure.add_subplot()
        labels = sorted(records["label"].unique(), key=order)
        drawn = [draw(axes, records[records["label"] == label], i, label) for i, label in enumerate(labels)]
        if not any(drawn):
            return None
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
        return save(figure, path)


def look(index: int) -> tuple[str, str]:
    """Colour and marker of the contender with this number."""
    return COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]


@contextmanager
def drawing() -> Iterator[None]:
    """The settings of a figure."""
    with mpl.rc_context(SETTINGS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as SVG on a transparent ground, without what differs from run to run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path = path.with_suffix(".svg")
    figure.savefig(path, facecolor="none", bbox_inches="tight", metadata={"Date": None, "Creator": None})
    text = re.sub(r"<metadata>.*?</metadata>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    path.write_text(re.sub(r"(\d\.\d\d)\d+", r"\1", text), encoding="utf-8")
    return path
