"""The final runs of one task in one folder: what is compared there, and the numbers that figures and tables share."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import median

import numpy as np

from ..contenders import CONTENDERS
from ..stats import Difference, Estimate, estimate, paired
from ..tasks import Task, all_tasks
from .load import Entry, Metric
from .parts import folder_name, slug
from .summary import Floats


@dataclass(frozen=True)
class Contestant:
    """One label's runs, one a seed."""

    label: str
    runs: tuple[Entry, ...]

    def by_seed(self, value: Callable[[Entry], float]) -> dict[int, float]:
        """Finite values by seed."""
        return {run.seed: x for run in self.runs if math.isfinite(x := value(run))}

    @cached_property
    def scores(self) -> dict[int, float]:
        """Test scores by seed; a run that diverged may have none."""
        return self.by_seed(lambda run: run.test)

    def less(self, other: Contestant) -> Difference | None:
        """Its scores less another's by seed, see :func:`~hatam.bench.stats.paired`."""
        return paired(*({run.seed: run.test for run in each.runs} for each in (self, other)))

    @cached_property
    def score(self) -> Estimate | None:
        """The mean test score, None where no run has one."""
        return estimate(list(self.scores.values())) if self.scores else None

    @property
    def diverged(self) -> int:
        return sum(run.diverged for run in self.runs)

    def median(self, value: Callable[[Entry], float]) -> float:
        """The median over seeds, NaN where there is none."""
        values = self.by_seed(value)
        return median(values.values()) if values else math.nan


@dataclass(frozen=True)
class Comparison:
    """The contestants on one task in one folder of records.

    ``budget`` is "" or, where runs of several lengths lie there, their number of steps; in a study "equal steps" or
    "equal time".
    """

    group: str
    budget: str
    task: str
    contestants: tuple[Contestant, ...]

    @cached_property
    def known(self) -> Task | None:
        return all_tasks().get(self.task)

    @cached_property
    def told(self) -> Metric | None:
        """What its task says of the score, or else its records."""
        return metric_of(self.task, (run for c in self.contestants for run in c.runs))

    @property
    def sign(self) -> int:
        """1 where a higher score is better, −1 where a lower one is."""
        return 1 if self.told is None or self.told.higher_is_better else -1

    @property
    def metric(self) -> str:
        """The score's name, and which direction is better."""
        if self.told is None:
            return "score (task unknown here: higher taken as better)"
        return f"{self.told.name} ({'higher' if self.sign == 1 else 'lower'} is better)"

    @property
    def title(self) -> str:
        return f"{self.task}{self.where}"

    @property
    def where(self) -> str:
        """The folder of records and the budget, in brackets."""
        words = ", ".join(filter(None, (folder_name(self.group), self.budget)))
        return f" ({words})" if words else ""

    @property
    def key(self) -> tuple[str, str]:
        """What a comparison shares with those on other tasks that belong to it."""
        return self.group, self.budget

    def slug(self, *words: str) -> str:
        """A name for files and ids."""
        return slug(*words, folder_name(self.group), self.budget.replace(" ", "-"), self.task)

    @property
    def baseline(self) -> Contestant:
        """Whom the others are compared with: AdamW, or the first where that did not run."""
        return self.contestants[0]

    @property
    def base_name(self) -> str:
        """The baseline in words."""
        return "AdamW" if self.baseline.label == "adamw" else self.baseline.label

    def of(self, label: str) -> Contestant | None:
        """The contestant with a label, None where it did not run."""
        return next((c for c in self.contestants if c.label == label), None)

    def difference(self, contestant: Contestant) -> Difference | None:
        """Its score less the baseline's by seed; None for that itself and where there is no pair."""
        return None if contestant is self.baseline else contestant.less(self.baseline)

    def relative_time(self, contestant: Contestant) -> float:
        """Median over shared seeds of its time per step over the baseline's; NaN where either was not measured."""
        base = self.baseline.by_seed(lambda run: run.step_s)
        own = contestant.by_seed(lambda run: run.step_s)
        ratios = [own[seed] / base[seed] for seed in own.keys() & base.keys() if base[seed] > 0]
        return median(ratios) if ratios else math.nan

    def format(self, value: float, sign: str = "") -> str:
        """A score with the digits that it deserves: two of an accuracy in %, four of a loss or more. NaN is a dash."""
        return f"{value:{sign}.{self.decimals}f}" if math.isfinite(value) else "–"

    @cached_property
    def decimals(self) -> int:
        """Of a score, by the size of most."""
        scores = [abs(x) for c in self.contestants for x in c.scores.values()]
        usual = median(scores) if scores else 0.0
        return 2 if usual >= 10 else max(4, 2 - math.floor(math.log10(usual))) if usual > 0 else 4

    def format_score(self, score: Estimate | None) -> str:
        """A mean with its interval; nothing where there is none."""
        if score is None:
            return ""
        return self.format(score.mean) + (f" ± {self.format(score.half_width)}" if score.n > 1 else "")

    def format_difference(self, d: Difference | None) -> str:
        """A difference with its interval, where it has one; nothing where there is none."""
        if d is None:
            return ""
        interval = f" [{self.format(d.low, '+')}, {self.format(d.high, '+')}]" if math.isfinite(d.low) else ""
        return self.format(d.mean, "+") + interval


def metric_of(task: str, entries: Iterable[Entry]) -> Metric | None:
    """Of a task that is known here, or else as the runs of it tell."""
    known = all_tasks().get(task)
    if known is not None:
        return Metric(known.metric_name, known.higher_is_better)
    return next((entry.metric for entry in entries if entry.metric is not None), None)


def comparisons(entries: Iterable[Entry]) -> tuple[list[Comparison], list[str]]:
    """The final runs by folder of records, budget and task, and what is odd about them, in words.

    Runs of one label that differ in their options lie in folders of their own: they are told apart by those. Of runs
    that differ in nothing but the user's own code only those of the last code count.
    """
    grouped: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.purpose == "final":
            grouped[entry.group, entry.task].append(entry)
    result, odd = [], []
    for (group, task), found in sorted(grouped.items()):
        runs = _of_last_code(found)
        if len(runs) < len(found):
            odd.append(f"{len(found) - len(runs)} runs on {task} are left out: its code has changed after them")
        for budget, chosen in _budgets(runs).items():
            contestants = _contestants(chosen)
            result.append(Comparison(group, budget, task, tuple(sorted(contestants, key=lambda c: order(c.label)))))
            mixed = sorted({c.runs[0].label for c in contestants if c.label != c.runs[0].label})
            odd += [f"{label} on {task} was run with several settings, told apart by their folders" for label in mixed]
    unknown = sorted({each.task for each in result if each.told is None})
    odd += [f"task {task} is not known to this version: a higher score is taken as better" for task in unknown]
    return sorted(result, key=lambda each: (each.group, each.budget, each.task)), odd


def _of_last_code(runs: list[Entry]) -> list[Entry]:
    """Without the runs of a label, with the same options and steps, that others with another source came after."""
    last: dict[tuple[str, str, int], Entry] = {}
    for run in sorted(runs, key=lambda run: run.started):
        last[_but_for_code(run)] = run
    return [run for run in runs if run.source == last[_but_for_code(run)].source]


def _but_for_code(run: Entry) -> tuple[str, str, int]:
    return run.label, json.dumps(run.options, sort_keys=True, default=str), run.steps


def _budgets(runs: list[Entry]) -> dict[str, list[Entry]]:
    """One comparison for each number of steps; in a study one at equal steps, and one at equal time where that ran.

    The second takes the runs of a label at the common number of steps where it has no others and they have that pace:
    who has only been run at equal steps so far is left out.
    """
    if not runs[0].timed:
        every = sorted({run.steps for run in runs})
        return {
            f"{steps:,} steps" if len(every) > 1 else "": [run for run in runs if run.steps == steps] for steps in every
        }
    lengths: dict[str, set[int]] = defaultdict(set)
    for run in runs:
        lengths[run.label].add(run.steps)
    pace = median(run.steps * run.step_s for run in runs)
    alike = len({run.steps for run in runs}) == 1 or all(abs(pace / run.step_s - run.steps) <= 1 for run in runs)
    if alike and all(len(each) == 1 for each in lengths.values()):
        return {"": runs}
    common, _ = min(Counter(steps for each in lengths.values() for steps in each).items(), key=lambda x: (-x[1], x[0]))
    pace = median(run.steps * run.step_s for run in runs if run.steps != common)
    return {
        "equal steps": [run for run in runs if run.steps == common],
        "equal time": [
            run
            for run in runs
            if run.steps != common or (lengths[run.label] == {common} and abs(pace / run.step_s - common) <= 1)
        ],
    }


def _contestants(runs: list[Entry]) -> list[Contestant]:
    labels: dict[str, dict[str, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        labels[run.label][run.folder].append(run)
    return [
        Contestant(
            label if len(folders) == 1 else f"{label} [{folder.rpartition('-')[2]}]",
            tuple(sorted(found, key=lambda run: run.seed)),
        )
        for label, folders in labels.items()
        for folder, found in sorted(folders.items())
    ]


def order(label: str) -> tuple[int, str]:
    """Labels in the order of the table of contenders, others after them."""
    names = list(CONTENDERS)
    name = label.partition(":")[0].partition(" [")[0]
    return (names.index(name) if name in names else len(names), label)


def shared(comparison: Comparison, labels: Sequence[str], worst: float = -math.inf) -> Floats:
    """Scores, higher better, ``(labels, seeds)``, over the seeds that all labels ran; no finite score is the worst."""
    chosen = {c.label: c for c in comparison.contestants}
    runs = [{run.seed: run.test for run in chosen[label].runs} for label in labels]
    seeds = sorted(set.intersection(*(set(each) for each in runs))) if runs else []
    table = np.array([[each[seed] * comparison.sign for seed in seeds] for each in runs], dtype=np.float64)
    return np.where(np.isfinite(table), table, worst).reshape(len(labels), len(seeds))
