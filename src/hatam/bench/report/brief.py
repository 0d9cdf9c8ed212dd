"""A folder of records in short: a few contenders task by task, and how the last of them differs from the others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..stats import p_text
from ..tasks import all_tasks
from . import load
from .compared import Comparison, Contestant, comparisons
from .summary import corrected


def brief(root: Path, labels: Sequence[str] = ("adamw", "sam", "hatam")) -> str:
    """A Markdown table, or one for each folder of records and budget; tasks that lack a contender are left out.

    Args:
        root: the folder.
        labels: of the contenders; the last is compared to each of the others.

    Raises:
        ValueError: there is no such folder.
    """
    compared, _ = comparisons(load.find(root).entries)
    columns = ("task, n", *labels, *(cell for other in labels[:-1] for cell in (f"{labels[-1]} − {other}", "p, Holm")))
    several = len({each.group for each in compared}) > 1
    parts = []
    for group, budget in sorted({each.key for each in compared}):
        rows = list(_rows((each for each in compared if each.key == (group, budget)), labels))
        if rows:
            lines = [_line(columns), "|---" * len(columns) + "|", *map(_line, rows)]
            words = ", ".join([f"`{group}`"] * several + [f"at {budget}"] * bool(budget))
            heading = [f"{words[0].upper()}{words[1:]}:\n"] if words else []
            parts.append("\n".join(heading + lines))
    return "\n\n".join(parts)


def _rows(compared: Iterable[Comparison], labels: Sequence[str]) -> Iterable[Sequence[str]]:
    """Of each task; the p-values of a column are corrected over its tasks."""
    whole = [(each, found) for each in compared if (found := _chosen(each, labels))]
    whole.sort(key=lambda item: list(all_tasks()).index(item[0].task))
    columns = [{each.task: c[-1].less(c[i]) for each, c in whole} for i in range(len(labels) - 1)]
    p_values = [corrected(column) for column in columns]
    for each, chosen in whole:
        cells = [_score(each, c) for c in chosen]
        for d, p in ((column[each.task], p[each.task]) for column, p in zip(columns, p_values, strict=True)):
            cells += [each.format_difference(d), "" if d is None else p_text(p)]
        n = sorted({len(c.runs) for c in chosen})
        counted = str(n[0]) if len(n) == 1 else f"{n[0]} to {n[-1]}"
        yield (f"{each.task} {'↑' if each.sign == 1 else '↓'}, {counted}", *cells)


def _score(comparison: Comparison, c: Contestant) -> str:
    score = comparison.format_score(c.score)
    return f"{score} ({c.diverged} diverged)".strip() if c.diverged else score


def _chosen(comparison: Comparison, labels: Sequence[str]) -> list[Contestant] | None:
    """The contestants with these labels, None where one is missing or the task is not known."""
    found = [c for label in labels if (c := comparison.of(label)) is not None]
    return found if len(found) == len(labels) and comparison.known is not None else None


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
