"""The tables of the screening and of the judgements, from the scores that :mod:`screening` has collected.

python benchmarks/screened.py        fill in docs/decisions.md and README.md
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from screening import (
    BASELINE,
    DEFAULT,
    DROP_IN,
    EMA,
    LATE,
    LRS,
    ROOT,
    SCHEDULE_FREE,
    Scores,
    best_lr,
    label,
    lrs,
    mean,
    scores,
)

from hatam.bench import report
from hatam.bench.report.summary import corrected
from hatam.bench.stats import Difference, p_text, paired
from hatam.bench.tasks import find

README, DECISIONS = "README.md", "docs/decisions.md"

GIVEN_UP = {"gated": "gated-reach:gamma=0.2", "wide": "hatam-reach"}
"""The candidates that were judged and given up: results/screening/judged-gated.json and judged-wide.json."""


def better(task: str, found: Difference | None, p: float) -> int:
    """1 where a difference is to the good at p < 0.05, −1 where it is to the bad, else 0."""
    if found is None or not p < 0.05:
        return 0
    return 1 if (found.mean > 0) == find(task).higher_is_better else -1


Pair = tuple[str, str, int]  # ours, theirs, and which of a task's three lrs


def column(found: Scores, tasks: Sequence[str], pair: Pair) -> dict[str, tuple[Difference | None, float]]:
    """By task, how ours differs from theirs, and p after Holm's correction over the tasks."""
    ours, theirs, which = pair
    each = {}
    for task in tasks:
        labels = [label(spec, lrs(task)[which]) for spec in (ours, theirs)]
        if all(one in found[task] for one in labels):
            each[task] = paired(*(found[task][one] for one in labels))
    p = corrected(each)
    return {task: (each[task], p[task]) for task in each}


def judged(drop_in: str) -> dict[str, Pair]:
    """The columns of a judgement: ours, theirs, and which of a task's lrs: a third, the best, three times."""
    return {
        "− AdamW": (drop_in, BASELINE, 1),
        "− AdamW, late decay": (drop_in, LATE, 1),
        "− Schedule-Free": (drop_in, SCHEDULE_FREE, 1),
        "− AdamW, a third of lr": (drop_in, BASELINE, 0),
        "− AdamW, three times lr": (drop_in, BASELINE, 2),
    }


def judged_table(stage: str, drop_in: str) -> str:
    """A judgement: a row for each task, a column for each comparison, and below how many are better and worse."""
    found = scores(stage)
    tasks = [task for task in LRS if task in found]
    columns = {words: column(found, tasks, pair) for words, pair in judged(drop_in).items()}
    lines = [f"| task, n | AdamW's lr | {' | '.join(('AdamW', *columns))} |", "|---" * (len(columns) + 3) + "|"]
    for task in tasks:
        base = found[task][label(BASELINE, best_lr(task))]
        cells = [shown(task, *each[task]) if task in each else "" for each in columns.values()]
        lines.append(
            f"| {named(task)}, {len(base)} | {best_lr(task):g} | {mean(base.values()):.4g} | {' | '.join(cells)} |"
        )
    counts = []
    for each in columns.values():
        signs = [better(task, *each[task]) for task in each]
        counts.append(f"{signs.count(1)} / {signs.count(-1)}" if signs else "")
    lines.append(f"| better / worse | | | {' | '.join(counts)} |")
    return "\n".join(lines)


BRIEF = ("mnist1d-mlp-noise", "mnist1d-mlp", "mnist1d-conv-noise", "digits", "letter", "fashion", "bytes", "bytes-long")
"""The tasks of the README's table."""


RIVALS = (BASELINE, SCHEDULE_FREE)


def brief_table() -> str:
    """At AdamW's best lr against AdamW: the first question, on few tasks, and the counts over all."""
    found = scores("judge")
    each, free = (column(found, [task for task in LRS if task in found], (DROP_IN, who, 1)) for who in RIVALS)
    lines = ["| test score, n seeds | AdamW | HATAM − AdamW, 95% interval | p |", "|---|---:|---:|---:|"]
    for task in (task for task in BRIEF if task in each):
        base = found[task][label(BASELINE, best_lr(task))]
        difference, p = each[task]
        lines.append(
            f"| {named(task)}, {len(base)} | {mean(base.values()):.4g} | {interval(difference)} | {p_text(p)} |"
        )
    said = f"Over all: {count(each)}. Against Schedule-Free AdamW at its defaults and AdamW's lr: {count(free)}."
    return "\n".join([*lines, "", said])


def count(each: dict[str, tuple[Difference | None, float]]) -> str:
    """On how many tasks one is better and worse."""
    signs = [better(task, *one) for task, one in each.items()]
    return f"better on {signs.count(1)}, worse on {signs.count(-1)} of {len(signs)} tasks"


def interval(found: Difference | None) -> str:
    """A difference with its interval."""
    if found is None:
        return "a run was lost"
    digits = 2 if abs(found.high - found.low) > 0.05 else 4
    return f"{found.mean:+.{digits}f} [{found.low:+.{digits}f}, {found.high:+.{digits}f}]"


def shown(task: str, found: Difference | None, p: float) -> str:
    """A difference with its interval and its corrected p, bold where it is significant."""
    text = interval(found) if found is None else f"{interval(found)}, {p_text(p)}"
    return f"**{text}**" if better(task, found, p) else text


NAMES = {
    BASELINE: "AdamW, cosine",
    LATE: "AdamW, late",
    EMA: "AdamW, constant, EMA",
    SCHEDULE_FREE: "Schedule-Free",
    DEFAULT: "the first form",
    "hatam-reach": "wide reach, cosine",
    "hatam-reach:schedule=late": "wide reach, late",
    "hatam-reach:horizon=4.0": "reach from the first step on",
    "gated-reach:gamma=0.2": "gated reach",
    "hatam-straightened:gamma=0.4": "straightened",
}
"""The columns of the table; the last ones are of candidates that have been given up."""


def screened_table() -> str:
    """At AdamW's best lr: a row for each task, a column for each contender; + and − beside AdamW's cosine."""
    return _screened({name: (spec, 1) for spec, name in NAMES.items()})


HORIZON = {
    BASELINE: "AdamW, cosine",
    "hatam-reach": "8, travel 20",
    "hatam-reach:horizon=3": "3, travel 20",
    "hatam-reach:horizon=2": "2, travel 20",
    "hatam-reach:horizon=2,gamma=0.4": "2, travel 20, γ 0.4",
    "hatam-reach:horizon=2,travel=10": "2, travel 10",
    "hatam-reach:horizon=2,travel=15": "2, travel 15",
}
"""The columns of the table that chose horizon and travel."""


def horizon_table() -> str:
    """Of the tasks on which more than one horizon was tried."""
    found = scores("screen")
    tried = [task for task in LRS if label("hatam-reach:horizon=2", best_lr(task)) in found.get(task, {})]
    return _screened({name: (spec, 1) for spec, name in HORIZON.items()}, tried)


def off_table() -> str:
    """The same for the drop-in at a third of that lr and at three times as much, beside AdamW there."""
    words = {0: "a third", 2: "three times"}
    return _screened({f"{NAMES[spec]}, {words[i]}": (spec, i) for i in words for spec in (BASELINE, "hatam-reach")})


def _screened(columns: Mapping[str, tuple[str, int]], tasks: Sequence[str] | None = None) -> str:
    found = scores("screen")
    lines = [f"| task, n | AdamW's best lr | {' | '.join(columns)} |", "|---|" + "---:|" * (len(columns) + 1)]
    for task in [task for task in LRS if task in found] if tasks is None else tasks:
        cells = []
        for spec, which in columns.values():
            lr = lrs(task)[which]
            values, baseline = (found[task].get(label(one, lr), {}) for one in (spec, BASELINE))
            cells.append(compared(values, baseline, task) if baseline else "")
        counts = {len(values) for values in found[task].values()}
        lines.append(f"| {named(task)}, {max(counts)} | {best_lr(task):g} | {' | '.join(cells)} |")
    return "\n".join(lines)


def compared(values: Mapping[int, float], baseline: Mapping[int, float], task: str) -> str:
    """Mean ± standard error, and + where it is better than the baseline by a paired test at p < 0.05, − where worse."""
    if not values:
        return ""
    digits = 1 if mean(values.values()) > 9 else 3
    error = statistics.stdev(values.values()) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    text = f"{mean(values.values()):.{digits}f} ± {error:.{digits}f}"
    found = paired(values, baseline)
    sign = 0 if found is None else better(task, found, found.p)
    return text if sign == 0 else f"{text} {'+' if sign > 0 else '−'}"


def named(task: str) -> str:
    """With an arrow to where better is."""
    return f"{task} {'↑' if find(task).higher_is_better else '↓'}"


def pages() -> dict[tuple[str, str], str]:
    """The tables by page and marker; that of a stage that has not been done is left out."""
    found: dict[tuple[str, str], tuple[str, Callable[[], str]]] = {
        (DECISIONS, "screened"): ("screen", screened_table),
        (DECISIONS, "screened-off"): ("screen", off_table),
        (DECISIONS, "horizon"): ("screen", horizon_table),
        (DECISIONS, "judged"): ("judge", partial(judged_table, "judge", DROP_IN)),
        (README, "judged-brief"): ("judge", brief_table),
    }
    for name, spec in GIVEN_UP.items():
        found[DECISIONS, name] = (f"judged-{name}", partial(judged_table, f"judged-{name}", spec))
    return {place: table() for place, (stage, table) in found.items() if scores(stage)}


def main() -> None:
    """Fill in the pages."""
    for (page, marker), text in pages().items():
        report.fill_in(ROOT / page, marker, text)


if __name__ == "__main__":
    main()
