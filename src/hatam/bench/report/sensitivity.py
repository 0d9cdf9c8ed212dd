"""What tuning saw: the validation score against each option that it varied."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .compared import metric_of
from .figures import Looks, finish
from .load import Entry, number
from .parts import Figure, folder_name, slug, sources
from .style import canvas, drawing, log_scale, name_points
from .tabulate import plain

OPTIONS = ("lr", "gamma", "modulator_cap", "beta_c", "fade")
BINS = 8
Trial = tuple[Any, float]  # the option's value, and the mean validation score over seeds


def figures(entries: Sequence[Entry], looks: Looks, command: str) -> list[Figure]:
    """A figure for each folder, task and option of which some contender tried at least two values."""
    result = []
    for group, task in sorted({(entry.group, entry.task) for entry in entries}):
        there = [entry for entry in entries if (entry.group, entry.task) == (group, task)]
        steps = _usual([entry.steps for entry in there])
        for option in OPTIONS:
            here = [entry for entry in there if entry.steps == steps and option in entry.options]
            by_contender = {
                name: _trials([entry for entry in here if entry.contender == name], option)
                for name in sorted({entry.contender for entry in here})
            }
            varied = {name: trials for name, trials in by_contender.items() if len({str(x) for x, _ in trials}) > 1}
            if varied:
                used = [entry for entry in here if entry.contender in varied]
                result.append(_figure(task, option, varied, used, looks, command))
    return result


def _usual(steps: list[int]) -> int:
    """The most frequent number of steps, the least of them in a tie: runs of different lengths are no one curve."""
    return min(set(steps), key=lambda each: (-steps.count(each), each))


def _trials(entries: Iterable[Entry], option: str) -> list[Trial]:
    """One trial per setting; one that diverged on a seed, or has no finite score, is left out."""
    folders: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        folders[entry.folder].append(entry)
    settled = [runs for runs in folders.values() if not any(run.diverged for run in runs)]
    trials = [(runs[0].options[option], float(np.mean([run.validation for run in runs]))) for runs in settled]
    return [(_value(x), y) for x, y in trials if math.isfinite(y)]


def _value(x: Any) -> Any:
    if x is None or isinstance(x, bool) or math.isnan(number(x)):
        return None if x is None else str(x)
    return number(x)


def _figure(
    task: str, option: str, varied: dict[str, list[Trial]], used: list[Entry], looks: Looks, command: str
) -> Figure:
    score = metric_of(task, used)
    sign = 1 if score is None or score.higher_is_better else -1
    values = sorted({x for trials in varied.values() for x, _ in trials}, key=_order)
    grid = len(values) <= BINS
    where = folder_name(used[0].group)
    name = slug("sensitivity", option.replace("_", "-"), where, task)
    alt = []
    with drawing(name):
        figure, axes = canvas(len(varied))
        ends = []
        for contender, trials in varied.items():
            points = [(float(values.index(x)), y) for x, y in trials] if grid else _finite(trials)
            if not points:
                continue
            look, line = looks[contender], _best(points, sign, grid)
            axes.plot(*zip(*points, strict=True), look.marker, color=look.colour, alpha=0.25, markersize=3.5)
            axes.plot(list(line), list(line.values()), look.stroke, color=look.colour, marker=look.marker)
            ends.append((max(line), line[max(line)], look))
            told = ", ".join(f"{line[x]:.4g} at {_name(values[int(x)]) if grid else plain(x)}" for x in line)
            alt.append(f"{contender}: {told}")
        if grid:
            axes.set_xticks(range(len(values)), [_name(x) for x in values])
        elif all(x > 0 for trials in varied.values() for x, _ in _finite(trials)):
            log_scale(axes)
        better = "higher" if sign == 1 else "lower"
        metric = "score" if score is None else score.name
        axes.set(xlabel=option, ylabel=f"validation {metric}")
        axes.margins(x=0.05)
        name_points(axes, ends)
        seeds = len({entry.seed for entry in used})
        points_of = "at each value" if grid else f"in each of up to {BINS} groups of near values"
        caption = (
            f"Validation {metric} ({better} is better) at {used[0].steps} steps. A faint point is a setting, the mean "
            f"over its seeds ({seeds} seeds in all, n = {sum(map(len, varied.values()))} settings); the line is the "
            f"best of them {points_of}, whatever the other options were. No band: settings are not a sample. One that "
            "diverged is left out."
        )
        title = f"Sensitivity to {option}: {task}{where and f' ({where})'}"
        return finish(figure, name, title, caption, f"{title}, best score. {'; '.join(alt)}.", sources(used, command))


def _best(points: list[tuple[float, float]], sign: int, grid: bool) -> dict[float, float]:
    """x and score of the best point at each x, or in each of some groups of equal size along x."""
    points = sorted(points)
    if grid:
        groups = [[p for p in points if p[0] == x] for x in sorted({x for x, _ in points})]
    else:
        parts = np.array_split(np.arange(len(points)), min(BINS, len(points)))
        groups = [[points[i] for i in part] for part in parts]
    best = [max(group, key=lambda point: sign * point[1]) for group in groups]
    return dict(best)


def _finite(trials: list[Trial]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in trials if isinstance(x, float) and math.isfinite(x)]


def _order(x: Any) -> tuple[int, float, str]:
    return (1, x, "") if isinstance(x, float) else (0, 0.0, str(x))


def _name(x: Any) -> str:
    if isinstance(x, float):
        return "∞" if x == math.inf else f"{x:.3g}"
    return "default" if x is None else str(x)
