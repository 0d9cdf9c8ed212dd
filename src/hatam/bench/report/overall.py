"""The figures over all tasks of a folder of records: mean ranks, and profiles of the cost to reach a target."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from .compared import Comparison, shared
from .figures import Looks, finish
from .load import Entry
from .parts import Figure, Sources, slug
from .style import canvas, drawing, name_points
from .summary import Floats, cost_to_target, mean_ranks, profile, resampled

RATIOS: Floats = np.geomspace(1, 10, 60, dtype=np.float64)


def everywhere(compared: Sequence[Comparison]) -> list[str]:
    """The labels that were run on every one of the tasks."""
    labels = [{c.label for c in comparison.contestants} for comparison in compared]
    return [c.label for c in compared[0].contestants if all(c.label in each for each in labels)]


def ranks(compared: Sequence[Comparison], looks: Looks, made_by: Sources) -> Figure | None:
    """Mean rank over tasks of the contenders that were run on all of them."""
    labels = everywhere(compared)
    tables = [shared(comparison, labels) for comparison in compared]
    if len(labels) < 2 or not all(table.shape[1] for table in tables):
        return None
    means = mean_ranks(tables)
    low, high = resampled(mean_ranks, tables)
    name = slug("ranks", *compared[0].key)
    chosen = np.argsort(means, kind="stable")
    with drawing(name):
        figure, axes = canvas(len(labels))
        for place, i in enumerate(chosen):
            look = looks[labels[i]]
            axes.plot([low[i], high[i]], [-place, -place], color=look.colour)
            axes.plot(means[i], -place, look.marker, color=look.colour, markersize=6)
        axes.set(xlabel=f"mean rank over {len(tables)} tasks, 1 is best", yticks=[], xlim=(0.7, len(labels) + 0.3))
        axes.spines["left"].set_visible(False)
        name_points(axes, [(high[i], -place, looks[labels[i]]) for place, i in enumerate(chosen)])
        seeds = sorted({table.shape[1] for table in tables})
        caption = f"Ranks by the mean test score over n = {' or '.join(map(str, seeds))} shared seeds, averaged over "
        caption += f"{len(tables)} tasks ({', '.join(c.task for c in compared)}). Bars: 95% percentile bootstrap over "
        caption += "seeds, with the tasks as they are. A run without a finite score is ranked last."
        alt = "; ".join(f"{labels[i]}: {means[i]:.2f} [{low[i]:.2f}, {high[i]:.2f}]" for i in chosen)
        title = f"Mean rank over tasks{compared[0].where}"
        return finish(figure, name, title, caption + _left_out(compared, labels), f"{title}. {alt}.", made_by)


def profiles(compared: Sequence[Comparison], looks: Looks, made_by: Sources) -> Figure | None:
    """Performance profile of the cost to reach the baseline's median final validation score."""
    labels = everywhere(compared)
    timed = all(math.isfinite(run.step_s) for c in compared for each in c.contestants for run in each.runs)
    costs = [column for comparison in compared for column in costs_to_target(comparison, labels, timed)]
    if len(labels) < 2 or not costs:
        return None
    table, base = np.array(costs).T, " or ".join(sorted({each.base_name for each in compared}))
    shares = profile(table, RATIOS)
    name = slug("profile", *compared[0].key)
    unit = "time" if timed else "gradients"
    with drawing(name):
        figure, axes = canvas(len(labels))
        for label, line in zip(labels, shares, strict=True):
            look = looks[label]
            axes.plot(RATIOS, line, look.stroke, drawstyle="steps-post", color=look.colour)
            axes.plot(RATIOS[::12], line[::12], look.marker, color=look.colour)
        axes.set_xscale("log")
        axes.set(xlabel=f"{unit} to the target over the least {unit}", ylabel="share of problems", ylim=(-0.02, 1.02))
        axes.set_xticks([1, 2, 5, 10], ["1", "2", "5", "10"])
        axes.minorticks_off()
        name_points(axes, [(RATIOS[-1], line[-1], looks[label]) for label, line in zip(labels, shares, strict=True)])
        caption = (
            f"Each of n = {len(costs)} problems is a task and a seed; its target is {base}'s median final validation "
        )
        caption += f"score on the task. Cost is {'measured time of the steps' if timed else 'gradients taken'} until a "
        caption += "curve, which has some 20 points, first reaches the target; a run that never does counts as failed. "
        caption += "The line at x is the share that was reached within x times the least cost (arXiv cs/0102001)."
        reached = np.isfinite(table).mean(axis=1)
        alt = "; ".join(
            f"{label}: cheapest on {line[0]:.0%}, within twice {line[int(np.searchsorted(RATIOS, 2)) - 1]:.0%}, "
            f"ever {share:.0%}"
            for label, line, share in zip(labels, shares, reached, strict=True)
        )
        title = f"Performance profile of {unit} to a validation target{compared[0].where}"
        return finish(figure, name, title, caption + _left_out(compared, labels), f"{title}. {alt}.", made_by)


def costs_to_target(comparison: Comparison, labels: list[str], timed: bool) -> list[list[float]]:
    """For each seed that all labels ran: every label's cost to the baseline's median final validation score."""
    target = comparison.baseline.median(lambda run: run.validation) * comparison.sign
    runs = {c.label: {run.seed: run for run in c.runs} for c in comparison.contestants if c.label in labels}
    if not runs or not math.isfinite(target):
        return []

    def spent(run: Entry) -> float:
        curve = [(step, score * comparison.sign) for step, score in run.curve]
        return cost_to_target(curve, target, run.step_s if timed else run.gradients_per_step)

    seeds = sorted(set.intersection(*(set(of_label) for of_label in runs.values())))
    return [[spent(runs[label][seed]) for label in labels] for seed in seeds]


def _left_out(compared: Sequence[Comparison], labels: list[str]) -> str:
    rest = sorted({c.label for comparison in compared for c in comparison.contestants} - set(labels))
    return f" Not run on every task, and so left out: {', '.join(rest)}." if rest else ""
