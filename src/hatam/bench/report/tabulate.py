"""The tables of the report."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np

from ..stats import Difference, p_text
from . import summary
from .compared import Comparison, Contestant
from .load import Entry
from .parts import Sources, Table, folder_name, slug, sources
from .summary import Floats, resampled

MEASURED = ("gradients/step", "time/step", "λ_max", "diverged")
PValues = dict[tuple[str, ...], float]


def corrected(compared: Sequence[Comparison]) -> PValues:
    """Holm's p by comparison and label: the tests of a label over the tasks of one folder and budget are a family."""
    families: dict[tuple[str, ...], dict[tuple[str, str], Difference | None]] = {}
    for comparison in compared:
        for c in comparison.contestants:
            if c is not comparison.baseline:
                family = families.setdefault((*comparison.key, c.runs[0].label), {})  # also where it is told apart
                family[comparison.task, c.label] = comparison.difference(c)
    return {(*key, *test): p for (*key, _), family in families.items() for test, p in summary.corrected(family).items()}


def results(comparison: Comparison, p_values: PValues, made_by: Sources) -> Table:
    """What each contender reached and cost on a task."""
    base = comparison.base_name
    return Table(
        comparison.slug("results"),
        f"Results on {comparison.title}",
        ("contender", "n", "mean", "95% interval", f"− {base}", "p", "p, Holm", *MEASURED),
        tuple(_result(comparison, c, p_values) for c in comparison.contestants),
        f"Test {comparison.metric}. Mean over n seeds with Student's 95% interval; differences to {base} are paired by "
        "seed, with their 95% interval, Student's paired t, and Holm's correction over the tasks of this folder of "
        f"records. Time/step is measured, {base} = 1, in a study by all contenders in turns; λ_max is the "
        "median over seeds. A run that diverged counts with its score; where it has none, n leaves it out, and there "
        "is no difference.",
        made_by,
    )


def _result(comparison: Comparison, c: Contestant, p_values: PValues) -> tuple[str, ...]:
    show, score, difference = comparison.format, c.score, comparison.difference(c)
    return (
        c.label,
        str(len(c.scores)),
        "–" if score is None else show(score.mean),
        "–" if score is None or score.n < 2 else f"{show(score.low)} to {show(score.high)}",
        comparison.format_difference(difference),
        "" if difference is None else p_text(difference.p),
        "" if difference is None else p_text(p_values[(*comparison.key, comparison.task, c.label)]),
        fixed(c.median(lambda run: run.gradients_per_step)),
        fixed(comparison.relative_time(c)),
        fixed(c.median(lambda run: run.sharpness["lambda_max"])),
        str(c.diverged),
    )


def corruption(comparison: Comparison, made_by: Sources) -> Table | None:
    """Mean corruption error relative to the baseline; None without shifts; a dash where scores tell no errors."""
    base, name = comparison.baseline, comparison.base_name
    shifts = sorted({shift for c in comparison.contestants for run in c.runs for shift in run.shifts})
    if not shifts:
        return None
    rows = []
    for c in comparison.contestants:
        pairs = _errors(comparison, c, base, shifts)
        if pairs is None:
            rows.append((c.label, *["–"] * (len(shifts) + 2)))
            continue
        ratios = _ratios([pairs[:, None]])[:, 0]
        low, high = resampled(lambda drawn: _ratios(drawn).mean(axis=0, keepdims=True), [pairs])
        interval = f"{low[0]:.1f} to {high[0]:.1f}" if c is not base and pairs.shape[1] > 1 else "–"
        rows.append((c.label, f"{ratios.mean():.1f}", interval, *(f"{ratio:.1f}" for ratio in ratios)))
    return Table(
        comparison.slug("corruption"),
        f"Mean corruption error on {comparison.title}",
        ("contender", "mean", "95% interval", *shifts),
        tuple(rows),
        f"Error summed over the severities of a shift, as a percentage of {name}'s on the same seeds; the mean is over "
        f"shifts (mCE, arXiv 1903.12261): below 100 is better than {name}. The error is 100 − score, or the score "
        f"itself where lower is better. Intervals: percentile bootstrap over {_seeds(comparison)} paired seeds.",
        made_by,
    )


def corruption_ratios(comparison: Comparison) -> dict[str, float]:
    """The means of :func:`corruption`'s table by label; empty where it has none."""
    base = comparison.baseline
    shifts = sorted({name for c in comparison.contestants for run in c.runs for name in run.shifts})
    found = {c.label: _errors(comparison, c, base, shifts) for c in comparison.contestants} if shifts else {}
    return {label: float(_ratios([p[:, None]]).mean()) for label, p in found.items() if p is not None}


def _seeds(comparison: Comparison) -> str:
    counts = sorted({len([run for run in c.runs if run.shifts]) for c in comparison.contestants})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _errors(comparison: Comparison, c: Contestant, base: Contestant, shifts: list[str]) -> Floats | None:
    """Summed errors of a contestant and the baseline, ``(2 × shifts, seeds)``, on the seeds and severities of both."""
    own, other = ({run.seed: run for run in each.runs} for each in (c, base))
    seeds = [seed for seed in sorted(own.keys() & other.keys()) if own[seed].shifts.keys() >= set(shifts)]
    seeds = [seed for seed in seeds if all(_same(own[seed], other[seed], name) for name in shifts)]
    if not seeds or (comparison.sign == 1 and max((*c.scores.values(), *base.scores.values()), default=0.0) <= 1):
        return None  # a share is no percentage
    offset = 100.0 if comparison.sign == 1 else 0.0
    table = np.array(
        [
            [sum(offset - comparison.sign * x for x in run[seed].shifts[name].values()) for seed in seeds]
            for run in (own, other)
            for name in shifts
        ]
    )
    return table if np.isfinite(table).all() and (table >= 0).all() and table[len(shifts) :].all() else None


def _same(a: Entry, b: Entry, shift: str) -> bool:
    return shift in b.shifts and a.shifts[shift].keys() == b.shifts[shift].keys()


def _ratios(tables: list[Floats]) -> Floats:
    own, base = np.split(tables[0].mean(axis=-1), 2)
    return np.asarray(100 * own / base, dtype=np.float64)


def tuning(entries: Sequence[Entry], command: str) -> list[Table]:
    """What tuning cost, a table per folder and task; not what a study's stage "sensitivity" did after it."""
    result = []
    entries = [entry for entry in entries if entry.stage != "sensitivity"]
    for group, task in sorted({(entry.group, entry.task) for entry in entries}):
        here = [entry for entry in entries if (entry.group, entry.task) == (group, task)]
        rows = []
        for name in sorted({entry.contender for entry in here}):
            runs = [entry for entry in here if entry.contender == name]
            steps = [run.curve[-1][0] if run.diverged and run.curve else run.steps for run in runs]
            gradients = [n * run.gradients_per_step for n, run in zip(steps, runs, strict=True)]
            seconds = [n * run.step_s for n, run in zip(steps, runs, strict=True) if math.isfinite(run.step_s)]
            rows.append(
                (
                    name,
                    str(len({json.dumps(run.options, sort_keys=True) for run in runs})),
                    str(len(runs)),
                    f"{sum(steps):,}",
                    f"{sum(gradients):,.0f}" if np.isfinite(gradients).all() else "–",
                    f"{sum(seconds) / 3600:.2f} ({len(seconds)} runs)" if seconds else "not measured",
                    str(sum(run.diverged for run in runs)),
                )
            )
        columns = ("contender", "settings", "runs", "steps", "gradients", "hours", "diverged")
        caption = "Settings tried, and the whole cost of their runs. Gradients count whole batches; hours are steps "
        caption += "times the median time of a step, of the runs for which that was measured."
        made_by = sources(here, command)
        where = folder_name(group)
        title = f"Cost of tuning on {task}{where and f' ({where})'}"
        result.append(Table(slug("tuning", where, task), title, columns, tuple(rows), caption, made_by))
    return result


def diverged(entries: Sequence[Entry], command: str) -> Table:
    """How many runs diverged, by task, purpose and label; those of which none did are summed up."""
    rows, calm = [], 0
    keys = sorted({(entry.task, entry.purpose, entry.label) for entry in entries})
    for task, purpose, label in keys:
        runs = [e for e in entries if (e.task, e.purpose, e.label) == (task, purpose, label)]
        if n := sum(run.diverged for run in runs):
            rows.append((label, task, purpose, str(len(runs)), str(n)))
        else:
            calm += len(runs)
    total = sum(entry.diverged for entry in entries)
    rows.append(("all others", "", "", str(calm), "0"))
    caption = f"{total} of {len(entries)} runs diverged: their loss was no longer finite, and they ended there."
    columns = ("contender", "task", "purpose", "runs", "diverged")
    return Table("diverged", "Diverged runs", columns, tuple(rows), caption, sources(entries, command))


def plain(value: float) -> str:
    """A number of no unit, a dash where there is none."""
    if not math.isfinite(value):
        return "–"
    return f"{value:.0f}" if value == int(value) and abs(value) < 1e9 else f"{value:.3g}"


def fixed(value: float) -> str:
    """The same for a column of a table: three digits, zeros included."""
    return f"{value:#.3g}" if math.isfinite(value) else "–"
