"""What HATAM was to reach, and whether it does: six sentences in docs/results.md, and some of them in README.md.

python benchmarks/targets.py
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, geometric_mean, median
from typing import NamedTuple

import confirmed
import grids
import untuned

from hatam.bench import report
from hatam.bench.report import load
from hatam.bench.report.compared import Comparison, comparisons, shared
from hatam.bench.report.overall import costs_to_target
from hatam.bench.report.summary import corrected, mean_ranks
from hatam.bench.report.tabulate import corruption_ratios
from hatam.bench.stats import Difference
from hatam.bench.study.plans import PLANS
from hatam.bench.tasks import all_tasks

STUDY = grids.ROOT / "results/full"
FORMS = ("hatam", "hatam-relative")  # the default, and the one with its radius in units of the weights
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


def hurt_by_steps(steps: Sequence[Comparison], time: Sequence[Comparison], label: str) -> list[str]:
    """Where a contender's mean score is worse in SAM's time than at the task's steps, of which it is a multiple."""
    before, after = ({each.task: (each.sign, each.of(label)) for each in some} for some in (steps, time))
    means = {
        task: [sign * c.score.mean for sign, c in (before[task], after[task]) if c and c.score]
        for task in before.keys() & after.keys()
    }
    return [task for task, both in means.items() if len(both) == 2 and both[1] < both[0]]


def beside_sam(steps: Sequence[Comparison], ours: str) -> Verdict:
    """Where the lower end of the interval is above the margin at equal steps."""
    means = {each.task: sam.score.mean for each in steps if (sam := each.of("sam")) and sam.score}
    signs = {each.task: each.sign for each in steps}
    found = pairs(steps, "sam", ours)
    margin = {task: MARGIN if signs[task] == 1 else MARGIN / 100 * means[task] for task in found}
    level = [task for task, d in found.items() if d is not None and d.low >= -margin[task]]
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
    """Mean corruption error, AdamW's being 100."""
    found = {each.task: ratios for each in compared if (ratios := corruption_ratios(each))}
    found = {task: ratios for task, ratios in found.items() if {ours, "sam"} <= ratios.keys()}
    below = [task for task, ratios in found.items() if ratios[ours] < 100]
    level = [task for task, ratios in found.items() if ratios[ours] <= ratios["sam"]]
    words = f"below AdamW's on {names(below)}, no worse than SAM's on {names(level)}, of {len(found)} suites"
    return Verdict(len(below) == len(found) and len(level) > len(found) / 2, words)


def flatness(compared: Sequence[Comparison], ours: str) -> Verdict:
    """Medians of λ_max and the trace over AdamW's, and whether they go with the mean score."""
    words, holds = [], True
    for key, name in (("lambda_max", "λ_max"), ("trace", "the trace")):
        ratios, gains = {}, pairs(compared, "adamw", ours)
        for each in compared:
            values = [c.median(sharpness(key)) for label in (ours, "adamw") if (c := each.of(label))]
            if (
                len(values) == 2
                and gains.get(each.task) is not None
                and all(math.isfinite(x) and x > 0 for x in values)
            ):
                ratios[each.task] = values[0] / values[1]
        if ratios:
            flatter = [task for task, ratio in ratios.items() if ratio < 1]
            better = sum(d.mean > 0 for task in flatter if (d := gains[task]) is not None)
            mean, holds = geometric_mean(ratios.values()), holds and len(flatter) > len(ratios) / 2
            words.append(
                f"{name} is {mean:.2g} times AdamW's in the geometric mean and below it on {names(flatter)} of "
                f"{len(ratios)}, where the mean score is better on {better} and worse on {len(flatter) - better}"
            )
    return Verdict(holds, "; ".join(words))


def sharpness(key: str) -> Callable[[load.Entry], float]:
    """One of the measures of a run."""
    return lambda run: run.sharpness.get(key, math.nan)


def swapped_in() -> dict[str, list[Comparison]]:
    """The default in AdamW's place, by the options that AdamW had there."""
    rounds = {
        "β1 = 0.9, β2 = 0.95": "judged, usual",
        "torch's β2": "judged, torch's",
        "AdamW's tuned options": "judged",
    }
    return {where: comparisons(load.find(untuned.ROUNDS[name].folder).entries)[0] for where, name in rounds.items()}


def places(compared: Sequence[Comparison]) -> dict[str, dict[str, float]]:
    """Each contender's place by mean score, by task; of tasks on which everyone was run. A lost run is the worst."""
    found: dict[str, dict[str, float]] = {}
    for each in compared:
        labels = [c.label for c in each.contestants]
        if {*labels} >= EVERYONE | {*FORMS}:
            ranks = mean_ranks([shared(each, labels)])
            found |= {
                label: {**found.get(label, {}), each.task: rank} for label, rank in zip(labels, ranks, strict=True)
            }
    return found


def ranks(compared: Sequence[Comparison], ours: str) -> str:
    """Who is first on the tasks on which everyone was run, and who on the average."""
    found = places(compared)
    mean = {label: fmean(by_task.values()) for label, by_task in found.items()}
    order = sorted(mean, key=mean.__getitem__)
    kin = sum(label.startswith(("hatam", "atam")) for label in order)
    ahead = {label: [task for task, place in by_task.items() if place == 1] for label, by_task in found.items()}
    firsts = ", ".join(f"{label} on {names(ahead[label])}" for label in order if ahead[label])
    shown = [label for label in order if label in (*order[:8], ours, "adamw")]
    means = ", ".join(f"{label} {mean[label]:.1f}" for label in shown)
    return (
        f"Places are by mean score at {compared[0].budget} among {len(order)} contenders, of which {kin} are forms of "
        f"HATAM or ATAM, on the {len(found[ours])} tasks on which all of them were run. First: {firsts}. Mean place, "
        f"from the best on, not all shown: {means}."
    )


def both(verdict: Callable[[str], Verdict]) -> dict[str, Verdict]:
    """One for each form."""
    return {f"`{form}`": verdict(form) for form in FORMS}


def targets(steps: Sequence[Comparison], time: Sequence[Comparison], swapped: dict[str, list[Comparison]]) -> str:
    """A numbered list: what was to be reached, and what was."""
    lines = {
        "Tuned against tuned AdamW, at equal steps: better (p < 0.01) on at least 7, worse on none": both(
            lambda form: against(steps, "adamw", 0.01, form, 7)
        ),
        "Untuned in AdamW's place: better on at least 6, worse on none": {
            f"At {where}": against(each, "adamw", 0.05, untuned.DEFAULT, 6) for where, each in swapped.items()
        },
        "Against SAM: no worse than the margin on at least 7 at equal steps, better on at least 7 at equal time": both(
            lambda form: against_sam(steps, time, form)
        ),
        "First to AdamW's validation score at equal steps, by time, on more tasks than any other": both(
            lambda form: first_to_target(steps, form)
        ),
        "Mean corruption error below AdamW's on every suite, no worse than SAM's on most": both(
            lambda form: under_shift(steps, form)
        ),
        "λ_max and trace of the Hessian at the end below AdamW's on most tasks, at equal steps": both(
            lambda form: flatness(steps, form)
        ),
    }
    told = [
        f"{i}. **{name}.** {'. '.join(f'{of}, {verdict}' for of, verdict in verdicts.items())}."
        for i, (name, verdicts) in enumerate(lines.items(), 1)
    ]
    return "\n".join(told)


def again(new: Sequence[Comparison]) -> str:
    """What new seeds say of the targets that they decide."""
    ours = FORMS[0]
    lines = {
        "1, against AdamW": against(new, "adamw", 0.01, ours, 7),
        "3, against SAM": beside_sam(new, ours),
        "5, under shift": under_shift(new, ours),
        "6, flatness": flatness(new, ours),
    }
    return "\n".join(f"- Target {name}: {verdict}." for name, verdict in lines.items())


def marks(compared: Sequence[Comparison], other: str, ours: str) -> dict[str, str]:
    """By task, whether HATAM is better (+) or worse (−) than another, or neither."""
    better, worse = apart(compared, other, ours, 0.05)
    return {each.task: "+" if each.task in better else "−" if each.task in worse else "·" for each in compared}


def short(steps: Sequence[Comparison], time: Sequence[Comparison], swapped: dict[str, list[Comparison]]) -> str:
    """What README says of them, for the default form alone: a row for each task, and what no column can say."""
    ours = FORMS[0]
    columns = {
        "AdamW": marks(steps, "adamw", ours),
        "AdamW, equal time": marks(time, "adamw", ours),
        "SAM": marks(steps, "sam", ours),
        "SAM, equal time": marks(time, "sam", ours),
        **{f"untuned, {where}": marks(each, "adamw", untuned.DEFAULT) for where, each in swapped.items()},
        "place, equal steps": {task: f"{place:g}" for task, place in places(steps).get(ours, {}).items()},
        "γ": {each.task: f"{o['gamma']:.2g}" for each in steps if (o := grids.tuned(each.task, ours))},
    }
    tasks = [task for task in all_tasks() if task in columns["AdamW"]]
    rows = {task: [column.get(task, "") for column in columns.values()] for task in tasks}
    overfits = hurt_by_steps(steps, time, "adamw")
    ahead = [task for task in apart(time, "adamw", ours, 0.05)[0] if task in overfits]
    others = [f"at {where} {seeds(each, untuned.DEFAULT)}" for where, each in swapped.items()]
    told = [
        f"Tuned {seeds(steps, ours)} seeds, depending on the task; untuned, {', '.join(others)}.",
        f"At equal time AdamW itself is worse than at equal steps on {names(ahead)} of the tasks on which HATAM is "
        "better there.",
        ranks(steps, ours),
        ranks(time, ours),
    ]
    return "\n".join([grids.table("task", list(columns), rows), "", *(f"- {each}" for each in told)])


def pages() -> dict[tuple[str, str], str]:
    """What is rendered, by page and marker."""
    compared, _ = comparisons(load.find(STUDY).entries)
    steps, time = ([each for each in compared if each.budget == budget] for budget in ("equal steps", "equal time"))
    found = steps, time, swapped_in()
    new, _ = comparisons(load.find(confirmed.RECORDS).entries)
    return {
        ("docs/results.md", "targets"): targets(*found),
        ("docs/results.md", "again"): again(new),
        ("README.md", "short"): short(*found),
    }


if __name__ == "__main__":
    for (page, marker), text in pages().items():
        report.fill_in(grids.ROOT / page, marker, text)
