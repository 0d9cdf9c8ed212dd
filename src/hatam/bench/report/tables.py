"""The short table and the plots of one comparison, which `hatam compare` and `hatam table` show."""

from __future__ import annotations

from pathlib import Path

from ..stats import p_text
from . import figures
from .compared import Comparison, Contestant
from .parts import Figure, sources
from .style import looks
from .tabulate import fixed


def columns(comparison: Comparison) -> tuple[str, ...]:
    """The header of the table."""
    return ("contender", "n", "test", f"− {comparison.base_name}", "p", "gradients/step", "time/step", "λ_max")


def cells(comparison: Comparison, c: Contestant) -> tuple[str, ...]:
    """A contestant's row as text, in the order of :func:`columns`."""
    difference = comparison.difference(c)
    return (
        c.label + (f" ({c.diverged} diverged)" if c.diverged else ""),
        str(len(c.scores)),
        comparison.format_score(c.score),
        comparison.format_difference(difference),
        "" if difference is None else p_text(difference.p),
        fixed(c.median(lambda run: run.gradients_per_step)),
        fixed(comparison.relative_time(c)),
        fixed(c.median(lambda run: run.sharpness["lambda_max"])),
    )


def markdown(comparison: Comparison) -> str:
    """The table in Markdown."""
    head = columns(comparison)
    lines = [head, ("---",) * len(head), *(cells(comparison, c) for c in comparison.contestants)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(comparison: Comparison, out: Path) -> list[Path]:
    """Learning curves, and the score against the measured cost, as SVG and PNG."""
    look = looks(c.label for c in comparison.contestants)
    made_by = sources([], "")
    drawn = (figures.curves(comparison, look, made_by), figures.cost(comparison, look, made_by))
    return [path for figure in drawn if figure is not None for path in save(figure, out)]


def save(figure: Figure, out: Path) -> list[Path]:
    """Write a figure's files into a folder."""
    out.mkdir(parents=True, exist_ok=True)
    svg, png = (out / f"{figure.name}.{kind}" for kind in ("svg", "png"))
    svg.write_text(figure.svg, encoding="utf-8")
    png.write_bytes(figure.png)
    return [svg, png]
