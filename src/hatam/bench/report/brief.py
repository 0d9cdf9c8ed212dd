"""A study in two small tables: AdamW, SAM and HATAM, task by task, at equal steps and at equal time."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ..stats import Difference, p_text, paired
from ..tasks import all_tasks
from . import load
from .compared import Comparison, Contestant, comparisons
from .summary import holm

SHOWN = ("adamw", "sam", "hatam")
COLUMNS = ("task, n", *SHOWN, "hatam − adamw", "p, Holm", "hatam − sam", "p, Holm")


def brief(root: Path) -> str:
    """The tables of a study's folder as Markdown; tasks that lack one of the three are left out.

    Raises:
        ValueError: there is no such folder.
    """
    compared, _ = comparisons(load.find(root).entries)
    parts = []
    for budget in ("equal steps", "equal time"):
        rows = list(_rows(each for each in compared if each.budget == budget))
        if rows:
            lines = [f"At {budget}:", "", _line(COLUMNS), "|---" * len(COLUMNS) + "|", *map(_line, rows)]
            parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _rows(compared: Iterable[Comparison]) -> Iterable[Sequence[str]]:
    """Of each task; the p-values of a column are corrected over its tasks."""
    whole = [(each, found) for each in compared if (found := _three(each))]
    whole.sort(key=lambda item: list(all_tasks()).index(item[0].task))
    differences = [[paired(hatam.scores, other.scores) for other in others] for _, (*others, hatam) in whole]
    p_values = [holm([1.0 if d is None else d.p for d in column]) for column in zip(*differences, strict=True)]
    for i, (each, three) in enumerate(whole):
        cells = [_score(each, c) for c in three]
        for d, p in zip(differences[i], p_values, strict=True):
            cells += [_difference(each, d), p_text(p[i])]
        yield (f"{each.task} {'↑' if each.sign == 1 else '↓'}, {len(three[0].scores)}", *cells)


def _score(comparison: Comparison, c: Contestant) -> str:
    show = comparison.format
    return "" if c.score is None else f"{show(c.score.mean)} ± {show(c.score.half_width)}"


def _difference(comparison: Comparison, d: Difference | None) -> str:
    show = comparison.format
    return "" if d is None else f"{show(d.mean, '+')} [{show(d.low, '+')}, {show(d.high, '+')}]"


def _three(comparison: Comparison) -> list[Contestant] | None:
    by_label = {c.label: c for c in comparison.contestants}
    found = [by_label[label] for label in SHOWN if label in by_label]
    return found if len(found) == len(SHOWN) and comparison.known is not None else None


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
