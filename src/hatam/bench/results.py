"""What a comparison of one's own gives: rows, and their table."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rich.table import Table

from .records import Run
from .stats import Difference, Estimate, estimate, p_text, paired
from .terminal import plain_console


@dataclass(frozen=True)
class Row:
    """One contender's score over its seeds.

    Attributes:
        label: the contender with its options.
        metric: name of the score.
        score: mean and 95% interval over the seeds that gave a finite one.
        difference: to the first contender, paired by seed; None for that itself, where fewer than two seeds pair, and
            where a seed of either has no finite score.
        relative_time: median over the shared seeds of the time of a run by that of the first contender's.
        diverged: how many seeds gave NaN or infinity; they are not in ``score``.
        scores: by seed.
    """

    label: str
    metric: str
    score: Estimate
    difference: Difference | None
    relative_time: float
    diverged: int
    scores: dict[int, float]

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        d = self.difference
        interval = "" if d is None or math.isnan(d.low) else f" [{d.low:+.3g}, {d.high:+.3g}]"
        return (
            self.label + (f" ({self.diverged} diverged)" if self.diverged else ""),
            str(self.score.n),
            f"{self.score.mean:.4g}" + (f" ± {self.score.half_width:.2g}" if self.score.n > 1 else ""),
            "" if d is None else f"{d.mean:+.3g}{interval}",
            "" if d is None else p_text(d.p),
            "" if math.isnan(self.relative_time) else f"{self.relative_time:.2f}",
        )


@dataclass(frozen=True)
class Result:
    """The rows of a comparison, by score and contender; and the runs that raised, as (label, seed, what and where)."""

    rows: list[Row]
    failures: list[tuple[str, int, str]]

    def __str__(self) -> str:
        """One table for each score, and the failures."""
        console = plain_console(file=io.StringIO(), width=200, color_system=None)
        for metric in dict.fromkeys(row.metric for row in self.rows):
            rows = [row for row in self.rows if row.metric == metric]
            console.print(f"{metric}: mean ± 95% interval; differences to the first, paired by seed")
            table = Table("contender", "n", metric, "difference", "p", "time", box=None)
            for row in rows:
                table.add_row(*row.cells())
            console.print(table)
        for label, seed, text in self.failures:
            console.print(f"failed: {label}, seed {seed}: {text}", soft_wrap=True)
        return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]


def tabulate(done: Iterable[tuple[Run, dict[str, Any]]], labels: Sequence[str]) -> list[Row]:
    """The rows of runs with their records, in the order of ``labels``; differences are to the first of these."""
    runs: dict[str, dict[int, dict[str, Any]]] = {label: {} for label in labels}
    for run, record in done:
        runs[run.label][run.seed] = record
    metrics = dict.fromkeys(
        metric for own in runs.values() for record in own.values() for metric in record["result"]["scores"]
    )
    return [
        _row(label, metric, own, runs[labels[0]], is_first=label == labels[0])
        for metric in metrics
        for label, own in runs.items()
        if own
    ]


def _row(
    label: str, metric: str, own: dict[int, dict[str, Any]], first: dict[int, dict[str, Any]], *, is_first: bool
) -> Row:
    ratios = [own[seed]["time"]["total_s"] / first[seed]["time"]["total_s"] for seed in own.keys() & first.keys()]
    scores = _scores(own, metric)
    finite = [score for score in scores.values() if math.isfinite(score)]
    return Row(
        label=label,
        metric=metric,
        score=estimate(finite) if finite else Estimate(math.nan, math.nan, math.nan, 0),
        difference=None if is_first else paired(scores, _scores(first, metric)),
        relative_time=median(ratios) if ratios else math.nan,
        diverged=len(scores) - len(finite),
        scores=scores,
    )


def _scores(runs: dict[int, dict[str, Any]], metric: str) -> dict[int, float]:
    return {seed: float(record["result"]["scores"].get(metric, math.nan)) for seed, record in runs.items()}
