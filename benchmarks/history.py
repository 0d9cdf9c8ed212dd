"""Fills in what docs and README quote of experiments that are done, and of the study.

The experiments' summary is results/history.json. Their runs are in this repository's history, in the commit
that it names.

    python benchmarks/history.py
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from common import ROOT, fill_in, read, table

from hatam.bench.records import Store
from hatam.bench.report import tables

Difference = dict[str, float]  # n, mean, its 95% interval low to high, and p

HISTORY: Any = read("results/history.json")
JUDGED = HISTORY["judged"][0]["tasks"]
BRIEF = ("mnist1d-mlp-noise", "mnist1d-mlp", "mnist1d-conv-noise", "digits", "letter", "fashion", "bytes", "bytes-long")


def sign(task: str, found: Difference) -> int:
    """1 where a difference is to the good at p < 0.05, −1 where it is to the bad, else 0."""
    good = (found["mean"] > 0) == (HISTORY["better"][task] == "higher")
    return 0 if not found["p"] < 0.05 else 1 if good else -1


def against(tasks: Mapping[str, Any], other: str) -> dict[str, Difference]:
    """A judgement's differences to one of the others, by task."""
    return {task: each["less"][other] for task, each in tasks.items() if other in each["less"]}


def counts(found: Mapping[str, Difference]) -> tuple[int, int, int]:
    """On how many tasks one is better, on how many worse, of how many."""
    signs = [sign(task, each) for task, each in found.items()]
    return signs.count(1), signs.count(-1), len(signs)


def named(task: str) -> str:
    """With an arrow to where better is."""
    return f"{task} {'↑' if HISTORY['better'][task] == 'higher' else '↓'}"


def interval(found: Difference, digits: int | None = None) -> str:
    """A difference with its interval."""
    digits = digits or (2 if found["high"] - found["low"] > 0.05 else 4)
    return f"{found['mean']:+.{digits}f} [{found['low']:+.{digits}f}, {found['high']:+.{digits}f}]"


def p_text(found: Difference) -> str:
    return "<0.001" if found["p"] < 0.001 else f"{found['p']:.3f}"


def judged() -> str:
    """The judgement that chose the default: a row for each task, bold where p < 0.05."""
    rows, others = [], ("AdamW", "AdamW, late decay", "Schedule-Free")
    for task, each in JUDGED.items():
        low, high = HISTORY["path length"][task]
        row = [f"{named(task)}, {each['less']['AdamW']['n']}", f"{each['lr']:g}", f"{low:.2g}–{high:.2g}"]
        row.append(f"{each['adamw']:.4g}")
        for other in others:
            found = each["less"].get(other)
            text = f"{interval(found)}, {p_text(found)}" if found else ""
            row.append(f"**{text}**" if found and sign(task, found) else text)
        rows.append(row)
    return table(["task, n", "lr", "N", "AdamW", *(f"− {other}" for other in others)], rows)


def forms() -> str:
    """The forms that were judged: on how many tasks each is better and worse, and by how much it loses to AdamW."""
    others, rows = list(JUDGED["digits"]["less"]), []
    for one in HISTORY["judged"]:
        each = [against(one["tasks"], other) for other in others]
        lost = [f"{task} {interval(d)}" for task, d in each[0].items() if sign(task, d) < 0]
        rows.append([one["form"], *("{} / {} of {}".format(*counts(x)) for x in each), "; ".join(lost)])
    return table(["better / worse than", *others, "loses to AdamW on"], rows)


def screened() -> str:
    """The candidates on validation data beside AdamW's cosine at the same lr; p is not corrected."""
    rows = []
    for one in HISTORY["screened"]:
        found = one["tasks"]
        worse = ", ".join(task for task in found if sign(task, found[task]) < 0)
        rows.append([one["candidate"], "{} / {} of {}".format(*counts(found)), worse])
    return table(["candidate", "better / worse", "worse on"], rows)


def first_study() -> str:
    """Tuned contenders against tuned AdamW."""
    found = {x["contender"]: x for x in HISTORY["first study"]}
    told = [
        ", ".join([name, *("{better} / {worse}".format(**count) for count in x["counts"].values())])
        for name, x in found.items()
    ]
    digits = found["sam"]["less AdamW"]["equal steps"]["digits"]
    return f"{'; '.join(told)}. SAM on digits at equal steps: {interval(digits)}, n = {digits['n']}."


def judged_brief() -> str:
    """The judgement against AdamW on few tasks, and the counts over all."""
    rows, less, free = [], against(JUDGED, "AdamW"), against(JUDGED, "Schedule-Free")
    for task in BRIEF:
        d = less[task]
        rows.append([f"{named(task)}, {d['n']}", f"{JUDGED[task]['adamw']:.4g}", interval(d), p_text(d)])
    said = "Over all: better on {}, worse on {} of {} tasks. ".format(*counts(less))
    said += "Against Schedule-Free AdamW at its defaults and AdamW's lr: "
    said += "better on {}, worse on {} of {} tasks.".format(*counts(free))
    return f"{table(['test score, n seeds', 'AdamW', 'HATAM − AdamW, 95% interval', 'p'], rows)}\n\n{said}"


def task_ranges() -> str:
    """The tasks' sizes, what AdamW, tuned in the study, and a linear model reach, and what a run costs."""
    study = pd.read_csv(ROOT / "results/study.csv").query("comparison == 'steps' and label == 'adamw'")
    rows, means = [], dict(zip(study["task"], study["mean"], strict=True))
    for x in HISTORY["tasks"]:
        digits = 1 if x["metric"].endswith("%") else 3
        sizes = [" / ".join(f"{n:,}" for n in x["samples"]), f"{x['parameters']:,}", f"{x['steps']:,} × {x['batch']}"]
        adamw = f"{means[x['task']]:.{digits}f}" if x["task"] in means else ""
        rows.append([x["task"], *sizes, adamw, f"{x['linear']:.{digits}f}", f"{x['cpu_s']:.2g}"])
    head = ["task", "train / validation / test", "parameters", "steps × batch", "AdamW, tuned", "linear", "CPU s"]
    return table(head, rows)


def tuned_brief() -> str:
    """The study in words: on how many tasks HATAM is better and worse than each of the others."""
    names = {"adamw": "AdamW", "sam": "SAM", "schedule-free": "Schedule-Free"}
    records, said = Store(ROOT / "results/study.parquet").read(), []
    whole = {
        comparison: tables.overall(records, comparison, names).set_index("contender")
        for comparison in ("steps", "gradients")
    }
    for comparison, found in whole.items():
        own = found.loc["hatam"]
        told = ", ".join(f"than {name} on {own[f'better / worse than {other}']}" for other, name in names.items())
        said.append(f"At equal {comparison}, HATAM is better / worse {told} of {own['tasks']} tasks.")
    (column,) = whole["steps"].filter(like="mean rank")
    ranks = whole["steps"][column].sort_values(key=pd.to_numeric)
    first = ", ".join(f"{name} {rank}" for name, rank in ranks.head(5).items())
    return (
        f"{' '.join(said)} These are differences with p < 0.01 after Holm's correction. At equal steps, the best of "
        f"{len(ranks)} contenders by {column} tasks: {first}."
    )


def small_state() -> str:
    """What storage in few bits costs in validation loss."""
    rows = []
    for x in HISTORY["small state"]:
        d = x.get("less float32")
        less = [interval(d, 4), f"{d['p']:.2g}"] if d else ["", ""]
        rows.append([x["stored"], f"{x['bytes']:.2f}", f"{x['loss']:.4f}", *less, str(x["n"])])
    return table(["stored", "state, B", "validation loss", "− float32", "p", "n"], rows)


def batch_norm() -> str:
    """What evaluation at z costs with BatchNorm's statistics of w."""
    columns, rows = ("w", "z, statistics of w", "z, update_bn", "update_bn less none"), []
    for x in HISTORY["batch norm"]:
        rows.append([x["at"], *("{mean:.2f} ± {half:.2f}".format(**x[key]) for key in columns), str(x["n"])])
    return table(["accuracy, %", *(f"at {column}" for column in columns[:3]), columns[3], "n"], rows)


def telemetry() -> str:
    """What an observation costs."""
    rows = []
    for x in HISTORY["telemetry"]:
        row = [x["shape"], f"{x['tensors']:,}", "{median:.1f} ({q1:.1f}–{q3:.1f})".format(**x)]
        rows.append([*row, f"{x['median'] / 2:.1f}%", str(x["n"])])
    return table(["parameters", "tensors", "one observation, in steps", "of all steps at every=200", "n"], rows)


PAGES = {
    "docs/decisions.md": (judged, forms, screened, first_study),
    "README.md": (judged_brief, tuned_brief),
    "docs/tasks.md": (task_ranges,),
    "docs/speed.md": (small_state,),
    "docs/from_adamw.md": (batch_norm,),
    "docs/telemetry.md": (telemetry,),
}
"""Each function's name is that of the marker in the page."""


if __name__ == "__main__":
    for page, found in PAGES.items():
        for draw in found:
            fill_in(page, draw.__name__.replace("_", "-"), draw())
