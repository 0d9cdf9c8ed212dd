"""What a check of the theory is, and the table of its runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

ROOT = Path(__file__).resolve().parent.parent
Job = dict[str, Any]
Run = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """One statement of ``docs/theory.md`` and how it is measured.

    Attributes:
        cases: what a run is told besides its seed; plain values.
        run: does one, in any process, and returns what was measured.
        table: the runs as Markdown.
        draw: the runs as a figure; None where there is none.
    """

    cases: Sequence[Job]
    run: Callable[..., Run]
    table: Callable[[Sequence[Run]], str]
    draw: Callable[[Sequence[Run], Axes], None] | None = None


def interval(values: Iterable[float]) -> str:
    """Mean and half of a 95% interval by Student's t; the mean alone of one value.

    Example:
        >>> interval([1.0, 2.0, 3.0])
        '2 ± 2.5'
    """
    x = list(values)
    if len(x) < 2:
        return f"{x[0]:.3g}"
    half = stdev(x) / len(x) ** 0.5 * float(stats.t.ppf(0.975, len(x) - 1))
    return f"{fmean(x):.3g} ± {half:.2g}"


def chosen(runs: Sequence[Run], **values: Any) -> list[Run]:
    """The runs of jobs with these values."""
    return [run for run in runs if all(run[key] == value for key, value in values.items())]


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; the first column is text."""
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def save(path: Path, draw: Callable[[Any], None], panels: int = 1) -> None:
    """A figure of one axes or of a row of them, as text that a change changes only where it must."""
    with matplotlib.rc_context({"svg.hashsalt": "hatam", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(6.4, 4) if panels == 1 else (2.7 * panels + 0.6, 3.1), layout="constrained")
        draw(figure.subplots(1, panels, sharex=True, sharey=True))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
