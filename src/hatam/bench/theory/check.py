"""What a check of the theory is: runs, what they say, and a figure of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any

from matplotlib.axes import Axes
from scipy import stats

Job = dict[str, Any]
Run = dict[str, Any]


@dataclass(frozen=True)
class Check:
    """One statement of ``docs/theory.md`` and how it is measured.

    Attributes:
        name: on the command line, of the record and of the figure.
        title: the statement in a line.
        jobs: for so many seeds, what each run is told; its key in the record, so all plain values.
        run: does one of them, in any process, and returns what was measured.
        table: the runs as Markdown.
        draw: the runs as a figure.
    """

    name: str
    title: str
    jobs: Callable[[int], list[Job]]
    run: Callable[..., Run]
    table: Callable[[Sequence[Run]], str]
    draw: Callable[[Sequence[Run], Axes], None]


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
