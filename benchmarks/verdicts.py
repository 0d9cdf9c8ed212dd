"""Verdicts on what HATAM was to reach: each holds or does not, and says with what."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import geometric_mean, median
from typing import NamedTuple

from hatam.bench.report import load
from hatam.bench.report.compared import Comparison
from hatam.bench.report.overall import costs_to_target
from hatam.bench.report.summary import corrected
from hatam.bench.report.tabulate import corruption_ratios
from hatam.bench.stats import Difference
from hatam.bench.study.plans import PLANS

MARGIN = 0.2  # points of accuracy; of an error, percent
EVERYONE = frozenset(contender for contender in PLANS["full"].contenders if not contender.startswith("hatam"))


class Verdict(NamedTuple):
    """Whether a target is reached, and with what."""

    holds: bool
    words: str

    def __str__(self) -> str:
        return f"{'reached' if self.holds else '**missed**'}: {self.words}"


def pairs(compared: Sequence[Comparison], other: str, ours: str) -> dict[str, Difference | None]:
    """HATAM less another by task, higher better; None where a run was lost."""
    found = {}
    for each in compared:
        hatam, base = each.of(ours), each.of(other)
        if hatam and base:
            found[each.task] = hatam.less(base) if each.sign == 1 else base.less(hatam)
    return found


def names(tasks: Sequence[str]) -> str:
    """Tasks in words."""
    return f"{len(tasks)} ({', '.join(tasks)})" if tasks else "none"


def apart(compared: Sequence[Comparison], other: str, ours: str, level: float) -> tuple[list[str], list[str]]:
    """On which tasks it is better and worse by Holm-corrected p; worse where a run was lost."""
    found = pairs(compared, other, ours)
    p = corrected(found)
    better = [task for task, d in found.items() if d is not None and d.mean > 0 and p[task] < level]
    worse = [task for task, d in found.items() if d is None or (d.mean < 0 and p[task] < 0.05)]
    return better, worse


def against(compared: Sequence[Comparison], other: str, level: float, ours: str, wanted: int = 0) -> Verdict:
    """:func:`apart` in words."""
    better, worse = apart(compared, other, ours, level)
    words = f"better (p < {level}) on {names(better)}, worse (p < 0.05) on {names(worse)}, of {tested(compared, ours)}"
    return Verdict(len(better) >= wanted and not worse, words)


def tested(compared: Sequence[Comparison], ours: str) -> str:
    """How many tasks there are, and on how many seeds."""
    return f"{len(compared)} tasks, {seeds(compared, ours)}"


def seeds(compared: Sequence[Comparison], ours: str) -> str:
    """On how many seeds, in words."""
    counts = sorted({len(c.runs) for each in compared if (c := each.of(ours))})
    return f"n = {' or '.join(map(str, counts))}"


def beside_sam(steps: Sequence[Comparison], ours: str) -> Verdict:
    """Where the lower end of the interval is above the margin at equal steps."""
    means = {each.task: sam.score.mean for each in steps if (sam := each.of("sam")) and sam.score}
    signs = {each.task: each.sign for each in steps}
    found = pairs(steps, "sam", ours)
    level = [
        task
        for task, d in found.items()
        if d is not None and d.low >= -(MARGIN if signs[task] == 1 else MARGIN / 100 * means[task])
    ]
    return Verdict(len(level) >= 7, f"at equal steps no worse than the margin on {names(level)} of {len(found)}")


def against_sam(steps: Sequence[Comparison], time: Sequence[Comparison], ours: str) -> Verdict:
    """:func:`beside_sam`, and where the lower end of the interval is above 0 at equal time."""
    level, found = beside_sam(steps, ours), pairs(time, "sam", ours)
    ahead = [task for task, d in found.items() if d is not None and d.low > 0]
    words = f"{level.words}, at equal time better on {names(ahead)} of {len(found)}"
    return Verdict(level.holds and len(ahead) >= 7, words)


def first_to_target(compared: Sequence[Comparison], ours: str) -> Verdict:
    """Who is first to AdamW's final validation score, by the median time over seeds; of HATAM this form alone.

    Only where everyone was run on all seeds does it decide. Where half of nobody's runs get there, nobody is first.
    """
    firsts: dict[str, list[str]] = {}
    whole = []
    for each in compared:
        rivals = [c for c in each.contestants if c.label == ours or not c.label.startswith("hatam")]
        labels = [c.label for c in rivals if len(c.runs) == len(each.baseline.runs)]
        costs = list(zip(*costs_to_target(each, labels, timed=True), strict=True)) if ours in labels else []
        if costs:
            medians = {label: median(column) for label, column in zip(labels, costs, strict=True)}
            first = min(labels, key=medians.__getitem__)
            firsts.setdefault(first if medians[first] < math.inf else "nobody", []).append(each.task)
            whole += [each.task] if set(labels) >= EVERYONE else []
    ranked = sorted(firsts.items(), key=lambda item: -len(item[1]))
    told = "; ".join(f"{label} on {names(tasks)}" for label, tasks in ranked)
    counted = {label: len({*tasks} & {*whole}) for label, tasks in firsts.items() if label != "nobody"}
    holds = counted.pop(ours, 0) > max(counted.values(), default=0)
    return Verdict(holds, f"{told}. Everyone was run on {names(whole)}, which decide, on the others some")


def under_shift(compared: Sequence[Comparison], ours: str) -> Verdict:
    """Mean corruption error, AdamW's being 100; infinite where runs were lost."""
    both = [each for each in compared if each.of(ours) and each.of("sam")]
    found = {
        each.task: {ours: math.inf, "sam": math.inf} | ratios for each in both if (ratios := corruption_ratios(each))
    }
    below = [task for task, ratios in found.items() if ratios[ours] < 100]
    level = [task for task, ratios in found.items() if ratios[ours] < math.inf and ratios[ours] <= ratios["sam"]]
    words = f"below AdamW's on {names(below)}, no worse than SAM's on {names(level)}, of {len(found)} suites"
    return Verdict(len(below) == len(found) and len(level) > len(found) / 2, words)


def flatness(compared: Sequence[Comparison], ours: str) -> Verdict:
    """Medians of λ_max and the trace over AdamW's, and whether they go with the mean score; no flatter where a run was
    lost.
    """
    words, holds = [], True
    for key, name in (("lambda_max", "λ_max"), ("trace", "the trace")):
        ratios, gains, lost = {}, pairs(compared, "adamw", ours), 0
        for each in compared:
            values = [c.median(sharpness(key)) for label in (ours, "adamw") if (c := each.of(label))]
            if len(values) == 2 and 0 < values[1] < math.inf:
                if gains[each.task] is None or not 0 < values[0] < math.inf:
                    lost += 1
                else:
                    ratios[each.task] = values[0] / values[1]
        if ratios:
            flatter = [task for task, ratio in ratios.items() if ratio < 1]
            better = sum(d.mean > 0 for task in flatter if (d := gains[task]) is not None)
            mean, holds = geometric_mean(ratios.values()), holds and len(flatter) > (len(ratios) + lost) / 2
            words.append(
                f"{name} is {mean:.2g} times AdamW's in the geometric mean and below it on {names(flatter)} of "
                f"{len(ratios) + lost}, where the mean score is better on {better} and worse on {len(flatter) - better}"
            )
    return Verdict(holds, "; ".join(words))


def sharpness(key: str) -> Callable[[load.Entry], float]:
    """One of the measures of a run."""
    return lambda run: run.sharpness.get(key, math.nan)
