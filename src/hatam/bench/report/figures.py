"""The figures of one task: quality and cost, learning curves, shifts, sharpness."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from scipy import stats

from ..stats import Estimate, estimate
from .compared import Comparison, Contestant
from .load import Entry
from .parts import Figure, Sources
from .style import Look, canvas, drawing, log_scale, name_points, pictures
from .tabulate import plain

Looks = dict[str, Look]
MEASURES = {
    "lambda_max": "λ_max",
    "trace": "trace of the Hessian",
    "preconditioned_lambda_max": "preconditioned λ_max",
    "preconditioned_trace": "preconditioned trace",
    "m_sharpness": "m-sharpness",
    "adaptive_sharpness": "adaptive sharpness",
}
"""Measures of sharpness: the key in a record, and the name that is shown."""


def finish(canvas: Canvas, name: str, title: str, caption: str, alt: str, made_by: Sources) -> Figure:
    """A drawn figure as a part of the page."""
    return Figure(name, title, caption, alt, *pictures(canvas, name), made_by)


def cost(comparison: Comparison, looks: Looks, made_by: Sources) -> Figure | None:
    """Score against the measured time of a step, or against gradients per step where no time was measured."""
    x_of: Callable[[Contestant], float] = comparison.relative_time
    base = comparison.base_name
    x_label, unit = f"measured time per step, {base} = 1", f"times {base}'s time per step"
    if not any(math.isfinite(x_of(c)) for c in comparison.contestants):
        x_label, unit = "gradients per step (time was not measured)", "gradients per step"
        x_of = _gradients
    caption = f"Mean test score over n = {counts(comparison)} seeds, with Student's 95% interval. Medians of costs."
    return _points("cost", "Quality and cost", comparison, looks, made_by, x_of, x_label, unit, caption)


def _gradients(contestant: Contestant) -> float:
    return contestant.median(lambda run: run.gradients_per_step)


def sharpness(comparison: Comparison, measure: str, looks: Looks, made_by: Sources) -> Figure | None:
    """Score against one of ``MEASURES``."""

    def x_of(contestant: Contestant) -> float:
        return contestant.median(lambda run: run.sharpness.get(measure, math.nan))

    xs = [(x_of(c), c.score.mean) for c in comparison.contestants if c.score and math.isfinite(x_of(c))]
    name = MEASURES[measure]
    caption = f"Median {name} at the end of training, and the mean test score with its 95% interval, "
    caption += f"n = {counts(comparison)} seeds. "
    if len(xs) > 2 and all(len(set(column)) > 1 for column in zip(*xs, strict=True)):
        rho = stats.spearmanr(*zip(*xs, strict=True)).statistic
        caption += f"Spearman's rank correlation over the {len(xs)} contenders: {rho:+.2f}. "
    caption += "Flatness does not by itself predict generalization (arXiv 2302.07011)."
    kind = f"sharpness-{measure.replace('_', '-')}"
    return _points(kind, f"Score and {name}", comparison, looks, made_by, x_of, name, name, caption, log=True)


def _points(
    kind: str,
    title: str,
    comparison: Comparison,
    looks: Looks,
    made_by: Sources,
    x_of: Callable[[Contestant], float],
    x_label: str,
    unit: str,
    caption: str,
    log: bool = False,
) -> Figure | None:
    """A point with its interval for each contender that has both coordinates."""
    shown = [(x_of(c), c.score, c.label) for c in comparison.contestants if c.score is not None]
    points = [(x, score, label) for x, score, label in shown if math.isfinite(x)]
    if not points:
        return None
    left_out = [c.label for c in comparison.contestants if c.label not in {label for _, _, label in points}]
    if left_out:
        caption += f" Without these numbers, and so left out: {', '.join(left_out)}."
    name = comparison.slug(kind)
    with drawing(name):
        figure, axes = canvas(len(points))
        for x, score, label in points:
            look = looks[label]
            error = None if score.n < 2 else score.half_width
            axes.errorbar(x, score.mean, yerr=error, fmt=look.marker, color=look.colour, elinewidth=1)
        if log and all(x > 0 for x, _, _ in points) and max(points)[0] > 5 * min(points)[0]:
            log_scale(axes)
        axes.margins(x=0.08, y=0.08)
        axes.set(xlabel=x_label, ylabel=f"test {_metric(comparison)}")
        name_points(axes, [(x, score.mean, looks[label]) for x, score, label in points])
        alt = "; ".join(f"{label}: {comparison.format_score(score)} at {plain(x)}" for x, score, label in points)
        alt = f"{title} on {comparison.title}; score, and {unit}. {alt}."
        return finish(figure, name, f"{title}: {comparison.title}", caption, alt, made_by)


def curves(comparison: Comparison, looks: Looks, made_by: Sources) -> Figure | None:
    """Validation score over the steps."""

    def by_step(run: Entry) -> dict[float, float]:
        return dict(run.curve)

    lines = _lines(comparison, by_step)
    if not lines:
        return None
    caption = f"Validation {comparison.metric}: mean over n = {counts(comparison)} seeds and, as a band, Student's 95% "
    caption += "interval at each step. The axis leaves out what only the first half of the steps shows."
    last = max(step for line in lines.values() for step in line)
    settled = [
        x
        for line in lines.values()
        for step, e in line.items()
        for x in (e.low, e.mean, e.high)
        if step >= last / 2 and math.isfinite(x)
    ]
    return _drawn(
        "curves", "Learning curves", comparison, looks, made_by, lines, "step", "validation", caption, settled
    )


def shift(comparison: Comparison, name: str, looks: Looks, made_by: Sources) -> Figure | None:
    """Test score over the severities of a shift."""
    lines = _lines(comparison, lambda run: run.shifts.get(name, {}))
    if not lines:
        return None
    caption = (
        f"Test {comparison.metric} as the data shift ({name}): mean over n = {counts(comparison)} seeds and, as a "
    )
    caption += "band, Student's 95% interval at each severity."
    return _drawn(f"shift-{name}", f"Shift {name}", comparison, looks, made_by, lines, "severity", "test", caption)


def _lines(comparison: Comparison, values: Callable[[Entry], dict[float, float]]) -> dict[str, dict[float, Estimate]]:
    """By label: an estimate over seeds at each x that has a finite value."""
    lines = {}
    for c in comparison.contestants:
        at: dict[float, list[float]] = defaultdict(list)
        for run in c.runs:
            for x, y in values(run).items():
                if math.isfinite(y):
                    at[x].append(y)
        if at:
            lines[c.label] = {x: estimate(at[x]) for x in sorted(at)}
    return lines


def _drawn(
    kind: str,
    title: str,
    comparison: Comparison,
    looks: Looks,
    made_by: Sources,
    lines: dict[str, dict[float, Estimate]],
    x_label: str,
    split: str,
    caption: str,
    shown: list[float] | None = None,
) -> Figure:
    """Lines with bands, named at their ends."""
    name = comparison.slug(kind)
    with drawing(name):
        figure, axes = canvas(len(lines))
        for label, line in lines.items():
            draw_band(axes, line, looks[label])
        if shown and max(shown) > min(shown):
            room = 0.04 * (max(shown) - min(shown))
            axes.set_ylim(min(shown) - room, max(shown) + room)
        axes.margins(x=0.01)
        axes.set(xlabel=x_label, ylabel=f"{split} {_metric(comparison)}")
        ends = {label: max(line) for label, line in lines.items()}
        name_points(axes, [(ends[label], line[ends[label]].mean, looks[label]) for label, line in lines.items()])
        firsts = {label: min(line) for label, line in lines.items()}
        alt = "; ".join(
            f"{label}: {comparison.format(line[firsts[label]].mean)} at {plain(firsts[label])}, "
            f"{comparison.format_score(line[ends[label]])} at {plain(ends[label])}"
            for label, line in lines.items()
        )
        alt = f"{title} on {comparison.title}, first and last {x_label}. {alt}."
        return finish(figure, name, f"{title}: {comparison.title}", caption, alt, made_by)


def draw_band(axes: Axes, line: dict[float, Estimate], look: Look) -> None:
    """A line of means with the band of their intervals."""
    xs = list(line)
    every = max(1, len(xs) // 6)
    axes.plot(xs, [e.mean for e in line.values()], look.stroke, color=look.colour, linewidth=1.3)
    axes.plot(xs[::every], [e.mean for e in line.values()][::every], look.marker, color=look.colour, markersize=4)
    low, high = np.array([(e.low, e.high) for e in line.values()]).T
    if np.isfinite(low).any():
        axes.fill_between(xs, low, high, color=look.colour, alpha=0.13, linewidth=0)


def counts(comparison: Comparison) -> str:
    """The numbers of seeds that gave a score, as "16" or "8 to 16"."""
    n = sorted({len(c.scores) for c in comparison.contestants})
    return str(n[0]) if len(n) == 1 else f"{n[0]} to {n[-1]}"


def _metric(comparison: Comparison) -> str:
    return "score" if comparison.told is None else comparison.told.name
