"""How figures look: colours for both pages and all eyes, names beside their lines, SVG that follows the page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogLocator

# After Okabe and Ito, brought to luminances that show on white and on near black; a marker tells more than a colour.
COLOURS = ("#777777", "#0072b2", "#008a68", "#b5568f", "#a87900", "#3b93c9", "#7a5cc7", "#d55e00")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "*", "p", "h")
STROKES = ("-", "--", ":")
INK, RULE = "#1b1f24", "#d0d7de"  # in the page: the text's colour, and that of its rules
# Inches: a figure, room at its left for numbers and at its right for names, a line of names.
WIDTH, LEFT, LABELS, LINE = 4.7, 0.7, 1.6, 0.165
SHORT = 19  # letters of a name in a figure

SETTINGS: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,  # a $ in a label is a $
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.5,
    "lines.markersize": 5,
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Look:
    """How one contender looks in every figure."""

    name: str
    colour: str
    marker: str
    stroke: str


def looks(labels: Iterable[str]) -> dict[str, Look]:
    """A look for each label, the same in all figures; colour, marker and stroke together differ up to 72 of them."""
    result: dict[str, Look] = {}
    for i, label in enumerate(labels):
        short = label if len(label) <= SHORT else f"{label[: SHORT // 2]}…{label[1 - SHORT // 2 :]}"
        if short in {look.name for look in result.values()}:
            short = f"{short} #{i}"
        stroke = STROKES[i // len(COLOURS) % len(STROKES)]
        result[label] = Look(short, COLOURS[i % len(COLOURS)], MARKERS[(i + i // 24) % len(MARKERS)], stroke)
    return result


@contextmanager
def drawing(name: str) -> Iterator[None]:
    """The settings of a figure. The name makes the ids in its SVG its own."""
    with mpl.rc_context({**SETTINGS, "svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def canvas(lines: int, height: float = 2.9) -> tuple[Canvas, Axes]:
    """A figure with room for so many names at its right."""
    height = max(height, lines * LINE + 0.75)
    figure = Canvas(figsize=(WIDTH, height))
    return figure, figure.add_axes((LEFT / WIDTH, 0.55 / height, (WIDTH - LEFT - LABELS) / WIDTH, 1 - 0.7 / height))


def log_scale(axes: Axes) -> None:
    """A logarithmic x axis with plain numbers."""
    axes.set_xscale("log")
    low, high = axes.get_xlim()
    narrow = high < 10 * low
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if narrow else (1, 3), numticks=6))
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
    axes.minorticks_off()


def spread(wanted: Sequence[float], gap: float, top: float) -> list[float]:
    """Places at least ``gap`` apart from 0 to ``top``, as near to the wanted ones as the order of those allows.

    Example:
        >>> spread([1.0, 1.0, 9.0], gap=2.0, top=10.0)
        [0.0, 2.0, 9.0]
    """
    order = np.argsort(wanted, kind="stable")
    shift = np.arange(len(wanted)) * gap
    free = np.asarray(wanted, dtype=np.float64)[order] - shift
    # The isotonic regression of what remains when every gap is taken out, by its min-max formula.
    means = [[free[i : j + 1].mean() if i <= j else np.inf for j in range(len(free))] for i in range(len(free))]
    fitted = [max(min(means[i][j] for j in range(k, len(free))) for i in range(k + 1)) for k in range(len(free))]
    places = np.empty(len(wanted))
    places[order] = np.clip(fitted, 0, max(0.0, top - shift[-1])) + shift
    return [float(x) for x in places]


def name_points(axes: Axes, points: Sequence[tuple[float, float, Look]]) -> None:
    """Names at the right of the axes, none over another, each with its marker and a thin line to its point."""
    if not points:
        return
    axes.autoscale_view()  # the limits that the figure will have, or the places are wrong
    box = axes.get_window_extent()
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = [float(np.clip(to_axes.transform((x, y))[1], 0, 1)) for x, y, _ in points]
    gap = LINE * axes.figure.dpi / box.height
    for (x, y, look), place in zip(points, spread(heights, gap, 1.0), strict=True):
        line = {"arrowstyle": "-", "color": look.colour, "linewidth": 0.6, "alpha": 0.7, "shrinkA": 0, "shrinkB": 0}
        axes.annotate(
            "", (x, y), (1.05, place), textcoords="axes fraction", annotation_clip=False, arrowprops=line, zorder=1
        )
        axes.plot(1.05, place, look.marker, color=look.colour, transform=axes.transAxes, clip_on=False, markersize=4.5)
        axes.text(1.08, place, look.name, transform=axes.transAxes, va="center", size=8)


def pictures(figure: Canvas, name: str) -> tuple[str, bytes, str]:
    """The figure as an SVG file, as a PNG, and as SVG within the page. The same figure gives the same bytes."""
    png, svg = io.BytesIO(), io.StringIO()
    figure.savefig(png, format="png", dpi=200, facecolor="white", metadata={"Software": None})
    figure.savefig(svg, format="svg", facecolor="none", metadata={"Date": None, "Creator": None})
    text = svg.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' (d|x|y|transform)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), text)
    used = set(re.findall(r"[\"(]#([^\")]+)[\")]", text))
    text = re.sub(r' id="([^"]*)"', lambda found: found[0] if found[1] in used else "", text)
    for i, old in enumerate(sorted(used)):
        text = text.replace(f'id="{old}"', f'id="{name}-{i}"').replace(f'"#{old}"', f'"#{name}-{i}"')
        text = text.replace(f"(#{old})", f"(#{name}-{i})")
    file = re.sub(r"(<svg[^>]*>)", r'\1<rect width="100%" height="100%" fill="#fff"/>', text, count=1)
    page = text.replace(INK, "currentColor").replace(RULE, "var(--rule)")
    page = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", page)
    return file, png.getvalue(), page
