"""Records to the tables of `hatam table` and of the documents."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ..contenders import CONTENDERS
from ..stats import Difference, Estimate, estimate, p_text, paired
from .load import number

BASELINE = "adamw"
Record = dict[str, Any]
COLUMNS = ("contender", "n", "test", "− AdamW", "p", "gradients/step", "time/step", "λ_max")


@dataclass(frozen=True)
class Row:
    """One contender on one task, over its seeds."""

    label: str
    score: Estimate
    difference: Difference | None
    gradients_per_step: float
    relative_time: float | None
    lambda_max: float
    diverged: int
    records: list[Record]

    def cells(self) -> tuple[str, ...]:
        """The row as text, in the order of ``COLUMNS``."""
        d, digits = self.difference, digits_of([self.score.mean])
        return (
            self.label + (f" ({self.diverged} diverged)" if self.diverged else ""),
            str(self.score.n),
            f"{self.score.mean:.{digits}f}" + (f" ± {self.score.half_width:.{digits}f}" if self.score.n > 1 else ""),
            "" if d is None else f"{d.mean:+.{digits}f} [{d.low:+.{digits}f}, {d.high:+.{digits}f}]",
            "" if d is None else p_text(d.p),
            f"{self.gradients_per_step:.2f}",
            "" if self.relative_time is None else f"{self.relative_time:.2f}",
            f"{self.lambda_max:.2f}",
        )


def digits_of(scores: Iterable[float]) -> int:
    """How many digits after the point scores deserve: two of an accuracy in %, four of a loss."""
    return 4 if all(abs(score) < 10 for score in scores) else 2


def rows(records: Iterable[Record]) -> list[Row]:
    """One row per label, in the order of the contender table.

    Raises:
        ValueError: records of one label differ in more than their seed.
    """
    by_label: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        by_label[record["run"]["label"]].append(record)
    for runs in by_label.values():
        _refuse_mixture(runs)
    baseline = by_label.get(BASELINE, [])
    return [_row(label, runs, baseline) for label, runs in sorted(by_label.items(), key=lambda item: _order(item[0]))]


def _refuse_mixture(runs: list[Record]) -> None:
    """Runs of one label must differ in their seeds alone, or their mean means nothing."""
    first = runs[0]["run"]
    for run in (record["run"] for record in runs):
        changed = [key for key in first if key != "seed" and run[key] != first[key]]
        if changed:
            key = changed[0]
            raise ValueError(
                f"the records of {run['label']!r} on {run['task']!r} differ in {key}: {first[key]!r} and {run[key]!r}; "
                "remove one of their folders, or give each comparison --records of its own"
            )


def _order(label: str) -> tuple[int, str]:
    name = label.partition(":")[0]
    return (list(CONTENDERS).index(name) if name in CONTENDERS else len(CONTENDERS), label)


def _row(label: str, runs: list[Record], baseline: list[Record]) -> Row:
    scores, others = _scores(runs), _scores(baseline)
    base_times = _step_times(baseline)
    sharpness = (number(r["result"].get("hessian_lambda_max")) for r in runs)
    finite = [x for x in sharpness if math.isfinite(x)]
    ratios = [time / base_times[seed] for seed, time in _step_times(runs).items() if seed in base_times]
    return Row(
        label=label,
        score=estimate([x for x in scores.values() if math.isfinite(x)] or [math.nan]),
        difference=paired(scores, others) if label != BASELINE else None,
        gradients_per_step=median(r["gradients_per_step"] for r in runs),
        relative_time=median(ratios) if ratios else None,
        lambda_max=median(finite) if finite else math.nan,
        diverged=sum(r["result"]["status"] == "diverged" for r in runs),
        records=runs,
    )


def _scores(runs: list[Record]) -> dict[int, float]:
    """Test scores by seed; NaN where a run that diverged has none."""
    return {r["run"]["seed"]: number(r["result"]["test"]) for r in runs}


def _step_times(runs: list[Record]) -> dict[int, float]:
    """Seconds of a step by seed; runs in a batch have no time of their own."""
    times = {r["run"]["seed"]: number(r["time"].get("step_median_s")) for r in runs}
    return {seed: time for seed, time in times.items() if math.isfinite(time)}


def by_task(records: Iterable[Record]) -> dict[str, list[Row]]:
    """The rows of every task in the records; those of tuning have no test score and are left out."""
    grouped: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record["run"].get("purpose", "final") == "final":
            grouped[record["run"]["task"]].append(record)
    return {task: rows(runs) for task, runs in sorted(grouped.items())}


def markdown(table: Sequence[Row]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    return "\n".join(lines + ["| " + " | ".join(row.cells()) + " |" for row in table])


def replace_between(text: str, marker: str, new: str) -> str:
    """Put ``new`` between ``<!-- marker:start -->`` and ``<!-- marker:end -->``.

    Raises:
        ValueError: the markers are not both there.
    """
    start, end = f"<!-- {marker}:start -->", f"<!-- {marker}:end -->"
    before, found_start, rest = text.partition(start)
    _, found_end, after = rest.partition(end)
    if not (found_start and found_end):
        raise ValueError(f"the lines {start} and {end} are not both there; add them where the table shall go")
    return f"{before}{start}\n{new}\n{end}{after}"


def fill_in(page: Path, marker: str, new: str) -> None:
    """:func:`replace_between` in a file."""
    page.write_text(replace_between(page.read_text(encoding="utf-8"), marker, new), encoding="utf-8")
