"""What HATAM was to reach, and whether it does: six sentences in docs/results.md, and some of them in README.md.

python benchmarks/targets.py
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

import confirmed
import grids
import untuned
from verdicts import (
    EVERYONE,
    Verdict,
    against,
    against_sam,
    apart,
    beside_sam,
    first_to_target,
    flatness,
    names,
    seeds,
    under_shift,
)

from hatam.bench import report
from hatam.bench.report import load
from hatam.bench.report.compared import Comparison, comparisons, shared
from hatam.bench.report.summary import mean_ranks
from hatam.bench.tasks import all_tasks

STUDY = grids.ROOT / "results/full"
FORMS = ("hatam", "hatam-relative")  # the default, and the one with its radius in units of the weights
Verdicts = dict[str, dict[str, Verdict]]


def verdicts(steps: Sequence[Comparison], time: Sequence[Comparison], swapped: dict[str, list[Comparison]]) -> Verdicts:
    """What was to be reached, and whether it was: by form, or by where the default was swapped in."""
    return {
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


def targets(found: Verdicts) -> str:
    """A numbered list."""
    return "\n".join(f"{i}. **{name}.** {told(each)}." for i, (name, each) in enumerate(found.items(), 1))


def reached(found: Verdicts, form: str) -> str:
    """Which of them a form reaches, in words; where it was swapped in, everywhere."""
    by_form = [{form: each[f"`{form}`"]} if f"`{form}`" in each else each for each in found.values()]
    numbers = [str(i) for i, each in enumerate(by_form, 1) if all(verdict.holds for verdict in each.values())]
    which = f"{len(numbers)}, number {' and '.join(numbers)}" if numbers else "none"
    return f"Of the [{len(found)} targets](docs/results.md#what-hatam-was-to-reach) `{form}` reaches {which}"


def both(verdict: Callable[[str], Verdict]) -> dict[str, Verdict]:
    """One for each form."""
    return {f"`{form}`": verdict(form) for form in FORMS}


def told(each: dict[str, Verdict]) -> str:
    """Several in words."""
    return ". ".join(f"{of}, {verdict}" for of, verdict in each.items())


def again(new: Sequence[Comparison], later: Sequence[Comparison]) -> str:
    """What new seeds say of the targets that they decide, and those of them that were run last of two."""
    lines = {
        "Target 1, against AdamW": both(lambda form: against(new, "adamw", 0.01, form, 7)),
        "The same on the later seeds alone": both(lambda form: against(later, "adamw", 0.01, form, 7)),
        "Target 3, against SAM": both(lambda form: beside_sam(new, form)),
        "The same on the later seeds alone, of which there are fewer": both(lambda form: beside_sam(later, form)),
        "Target 5, under shift": both(lambda form: under_shift(new, form)),
        "Target 6, flatness": both(lambda form: flatness(new, form)),
    }
    return "\n".join(f"- {name}: {told(each)}." for name, each in lines.items())


def swapped_in() -> dict[str, list[Comparison]]:
    """The default in AdamW's place, by the options that AdamW had there."""
    rounds = {
        "β1 = 0.9, β2 = 0.95": "judged, usual",
        "torch's β2": "judged, torch's",
        "AdamW's tuned options": "judged",
    }
    return {where: comparisons(load.find(untuned.ROUNDS[name].folder).entries)[0] for where, name in rounds.items()}


def short(
    steps: Sequence[Comparison], time: Sequence[Comparison], swapped: dict[str, list[Comparison]], found: Verdicts
) -> str:
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
    notes = [
        f"{reached(found, ours)}.",
        f"Tuned {seeds(steps, ours)} seeds, depending on the task; untuned, {', '.join(others)}.",
        f"At equal time AdamW itself is worse than at equal steps on {names(ahead)} of the tasks on which HATAM is "
        "better there.",
        ranks(steps, ours),
        ranks(time, ours),
    ]
    return "\n".join([grids.table("task", list(columns), rows), "", *(f"- {each}" for each in notes)])


def marks(compared: Sequence[Comparison], other: str, ours: str) -> dict[str, str]:
    """By task, whether HATAM is better (+) or worse (−) than another, or neither."""
    better, worse = apart(compared, other, ours, 0.05)
    return {each.task: "+" if each.task in better else "−" if each.task in worse else "·" for each in compared}


def hurt_by_steps(steps: Sequence[Comparison], time: Sequence[Comparison], label: str) -> list[str]:
    """Where a contender's mean score is worse in SAM's time than at the task's steps, of which it is a multiple."""
    before, after = ({each.task: (each.sign, each.of(label)) for each in some} for some in (steps, time))
    means = {
        task: [sign * c.score.mean for sign, c in (before[task], after[task]) if c and c.score]
        for task in before.keys() & after.keys()
    }
    return [task for task, both in means.items() if len(both) == 2 and both[1] < both[0]]


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
    best = {task: min(by_task[task] for by_task in found.values()) for task in found[ours]}  # more than 1 where two are
    ahead = {
        label: [task for task, place in by_task.items() if place == best[task]] for label, by_task in found.items()
    }
    firsts = ", ".join(f"{label} on {names(ahead[label])}" for label in order if ahead[label])
    shown = [label for label in order if label in (*order[:8], ours, "adamw")]
    means = ", ".join(f"{label} {mean[label]:.1f}" for label in shown)
    return (
        f"Places are by mean score at {compared[0].budget} among {len(order)} contenders, of which {kin} are forms of "
        f"HATAM or ATAM, on the {len(found[ours])} tasks on which all of them were run. First: {firsts}. Mean place, "
        f"from the best on, not all shown: {means}."
    )


def tuned_options() -> str:
    """Where the search of AdamW, SAM and both forms ended, by task."""
    rows = {task: [in_short(grids.tuned(task, name)) for name in confirmed.CONTENDERS] for task in all_tasks()}
    return grids.table("task", confirmed.CONTENDERS, {task: cells for task, cells in rows.items() if any(cells)})


def in_short(options: dict[str, Any] | None) -> str:
    """lr, β1, weight decay, and γ or ρ."""
    keys = ("lr", "beta1", "weight_decay", "gamma", "rho")
    return ", ".join(f"{options[key]:.2g}" for key in keys if key in options) if options else ""


def pages() -> dict[tuple[str, str], str]:
    """What is rendered, by page and marker."""
    compared, _ = comparisons(load.find(STUDY).entries)
    steps, time = ([each for each in compared if each.budget == budget] for budget in ("equal steps", "equal time"))
    compared_to = steps, time, swapped_in()
    found = verdicts(*compared_to)
    new = load.find(confirmed.RECORDS).entries
    later = [run for run in new if run.seed >= confirmed.FIRST_SEED + confirmed.looked_at(run.task)]
    return {
        ("docs/results.md", "targets"): targets(found),
        ("docs/results.md", "tuned"): tuned_options(),
        ("docs/results.md", "again"): again(*(comparisons(entries)[0] for entries in (new, later))),
        ("README.md", "short"): short(*compared_to, found),
    }


if __name__ == "__main__":
    for (page, marker), text in pages().items():
        report.fill_in(grids.ROOT / page, marker, text)
