"""The one table model: a row for each contender on each task, from which every table and figure is made."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..contenders import CONTENDERS
from ..stats import Estimate, estimate, holm, p_text, paired
from ..terminal import plain

MEASURES = {"lambda_max": "λ_max", "trace": "trace"}
GROUP = ["comparison", "task", "metric"]


def summary(records: pd.DataFrame, baseline: str | None = None, labels: Sequence[str] | None = None) -> pd.DataFrame:
    """What each contender reached, and cost, on each task.

    Args:
        records: of runs; only final ones count. A contender is known by its label.
        baseline: label to which differences are; None means "adamw", or the first label where that was not run.
        labels: their order; None means that of the table of contenders.

    Returns:
        a row for each comparison, task, metric and label. ``mean``, ``low``, ``high`` of the score, ``n`` and
        ``diverged``; ``difference`` to the baseline, paired by seed, with ``d_low``, ``d_high``, ``p``, and ``holm``,
        p corrected over the tasks of a comparison; medians of ``gradients`` per step, of ``time`` per step relative to
        the baseline's, and of the flatness measures; ``corruption``, the mean corruption error relative to the
        baseline's, 1 where both lose as much (arXiv 1903.12261).
    """
    finals = records[records["stage"] == "final"].drop_duplicates([*GROUP, "label", "seed"], keep="last")
    rows: list[dict[str, Any]] = []
    for (comparison, task, metric), group in finals.groupby(GROUP, sort=False):
        by_label = {label: own.set_index("seed") for label, own in group.groupby("label")}
        names = [label for label in labels or sorted(by_label, key=order) if label in by_label]
        first = str(next(name for name in (baseline, "adamw", names[0]) if name in by_label))
        named = {"comparison": comparison, "task": task, "metric": metric}
        rows += [{**named, **_row(label, by_label[label], by_label[first], first)} for label in names]
    frame = pd.DataFrame(rows)
    if len(frame):
        frame["holm"] = math.nan
        for _, group in frame[frame["label"] != frame["baseline"]].groupby(["comparison", "label"]):
            frame.loc[group.index, "holm"] = holm(list(group["p"]))
    return frame


def _row(label: str, own: pd.DataFrame, base: pd.DataFrame, first: str) -> dict[str, Any]:
    finite = [x for x in own["test"] if math.isfinite(x)]
    score = estimate(finite) if finite else Estimate(math.nan, math.nan, math.nan, 0)
    d = None if label == first else paired(own["test"].to_dict(), base["test"].to_dict())
    nothing = dict.fromkeys(("difference", "d_low", "d_high", "p"), math.nan)
    differences = nothing if d is None else {"difference": d.mean, "d_low": d.low, "d_high": d.high, "p": d.p}
    ratios = own["step_s"] / base["step_s"].reindex(own.index)
    last = own.iloc[-1]
    return {
        "label": label,
        "baseline": first,
        "higher_is_better": bool(last["higher_is_better"]),
        "n": score.n,
        "diverged": int((own["status"] == "diverged").sum()),
        "mean": score.mean,
        "low": score.low,
        "high": score.high,
        **differences,
        "gradients": own["gradients_per_step"].median(),
        "time": ratios.median(),
        **{name: own[name].astype(float).median() if name in own else math.nan for name in MEASURES},
        "corruption": corruption(own, base),
        "steps": int(last["steps"]),
        "options": last["options"],
    }


def corruption(own: pd.DataFrame, base: pd.DataFrame) -> float:
    """The error summed over severities relative to the baseline's, the mean over shifts, on the seeds of both.

    The error is 100 − score in percent, or the score itself where lower is better; NaN without shifts.
    """
    seeds = own.index.intersection(base.index)
    if "shifts" not in own or not len(seeds):
        return math.nan
    errors = [_errors(frame.loc[seeds]) for frame in (own, base)]
    shared = errors[0].keys() & errors[1].keys()
    ratios = [errors[0][shift] / errors[1][shift] for shift in sorted(shared) if errors[1][shift]]
    return float(np.mean(ratios)) if ratios else math.nan


def _errors(frame: pd.DataFrame) -> dict[str, float]:
    """By shift: errors summed over severities and seeds."""
    found: dict[str, float] = {}
    for text, higher in zip(frame["shifts"], frame["higher_is_better"], strict=True):
        for shift, scores in (json.loads(text) if isinstance(text, str) else {}).items():
            errors = (100.0 - float(x) if higher else float(x) for x in scores.values())
            found[shift] = found.get(shift, 0.0) + sum(errors)
    return found


def order(label: str) -> tuple[int, str]:
    """Labels in the order of the table of contenders, others after them."""
    names, name = list(CONTENDERS), label.partition(":")[0]
    return (names.index(name) if name in names else len(names), label)


# Views: frames of text --------------------------------------------------------------------------------------------


def compared(rows: pd.DataFrame) -> pd.DataFrame:
    """The contenders on one task, as text; columns that nobody has a number for are left out."""
    format_ = digits(rows)
    shown = pd.DataFrame(
        {
            "contender": [
                plain(r.label) + (f" ({r.diverged} diverged)" if r.diverged else "") for r in rows.itertuples()
            ],
            "n": [str(n) for n in rows["n"]],
            "test": [with_interval(r.mean, r.high, format_) for r in rows.itertuples()],
            f"− {plain(rows['baseline'].iloc[0])}": [
                with_interval(r.difference, r.d_high, format_, "+") for r in rows.itertuples()
            ],
            "p": [p_text(p) if not math.isnan(p) else "" for p in rows["p"]],
            "grad.": [short(x) for x in rows["gradients"]],
            "time": [short(x) for x in rows["time"]],
            "λ_max": [short(x) for x in rows["lambda_max"]],
        }
    )
    return shown.loc[:, [any(shown[column] != "") for column in shown]]


def by_task(rows: pd.DataFrame, labels: Sequence[str], alpha: float = 0.01) -> pd.DataFrame:
    """The baseline's score on each task of one comparison, and the differences of these contenders to it, as text.

    Differences with p < ``alpha`` after Holm's correction are bold in Markdown.
    """
    lines = []
    for task, group in rows.groupby("task", sort=False):
        found, format_ = group.set_index("label"), digits(group)
        base = found.loc[found["baseline"].iloc[0]]
        cells = {"task, n": f"{task} {'↑' if base['higher_is_better'] else '↓'}, {base['n']}"}
        cells[str(base.name)] = with_interval(base["mean"], base["high"], format_)
        for label in labels:
            text = ""
            if label in found.index:
                row = found.loc[label]
                text = with_interval(row["difference"], row["d_high"], format_, "+")
                text = f"**{text}**" if row["holm"] < alpha else text
            cells[f"{label} −"] = text
        lines.append(cells)
    return pd.DataFrame(lines)


def overall(records: pd.DataFrame, comparison: str, others: Iterable[str], alpha: float = 0.01) -> pd.DataFrame:
    """Each contender over all tasks of a comparison that it was judged on, as text.

    Columns: the tasks, the mean rank on the tasks of all contenders, on how many tasks it is better and worse than each
    of ``others`` at p < ``alpha`` after Holm's correction, and geometric means of what is relative to the first.
    """
    against = {other: summary(records, other) for other in others}
    rows = next(iter(against.values()))
    rows = rows[rows["comparison"] == comparison]
    ranks, shared = mean_ranks(rows)
    lines = []
    for label in sorted(rows["label"].unique(), key=order):
        own = rows[rows["label"] == label]
        cells = {"contender": label, "tasks": str(len(own)), f"mean rank on {shared}": short(ranks[label])}
        for other, less in against.items():
            better, worse = wins(less, comparison, label, alpha)
            cells[f"better / worse than {other}"] = "" if label == other else f"{better} / {worse}"
        for column, name in {"corruption": "corruption error", **MEASURES}.items():
            cells[name] = short(_geometric(relative(rows, label, column)))
        lines.append(cells)
    return pd.DataFrame(lines)


def wins(rows: pd.DataFrame, comparison: str, label: str, alpha: float) -> tuple[int, int]:
    """On how many tasks a contender is better and worse than the baseline at p < ``alpha`` after Holm's correction."""
    own = rows[(rows["comparison"] == comparison) & (rows["label"] == label) & (rows["holm"] < alpha)]
    gains = np.where(own["higher_is_better"], own["difference"], -own["difference"])
    return int((gains > 0).sum()), int((gains < 0).sum())


def mean_ranks(rows: pd.DataFrame) -> tuple[dict[str, float], int]:
    """The mean rank of each contender, 1 best, over the tasks on which all were judged, and the number of these."""
    signed = rows.assign(score=np.where(rows["higher_is_better"], rows["mean"], -rows["mean"]))
    table = signed.pivot_table(index="task", columns="label", values="score", dropna=False).dropna(axis=0)
    ranks = table.rank(axis=1, ascending=False).mean()
    return {str(label): float(rank) for label, rank in ranks.items()}, len(table)


def relative(rows: pd.DataFrame, label: str, column: str) -> list[float]:
    """A column of a contender over the baseline's, by task; the corruption error is relative already."""
    found = []
    for _, group in rows.groupby("task"):
        one = group.set_index("label")
        if label in one.index:
            base = 1.0 if column == "corruption" else one.loc[one["baseline"].iloc[0], column]
            found.append(float(one.loc[label, column]) / base if base > 0 else math.nan)
    return [x for x in found if math.isfinite(x) and x > 0]


def _geometric(values: Sequence[float]) -> float:
    return math.exp(float(np.mean(np.log(values)))) if values else math.nan


# Text -------------------------------------------------------------------------------------------------------------


def digits(rows: pd.DataFrame) -> str:
    """The decimals that the scores deserve: two of an accuracy in percent, four of a loss or more."""
    usual = float(rows["mean"].abs().median())
    return f".{2 if usual >= 10 else max(4, 2 - math.floor(math.log10(usual))) if usual > 0 else 4}f"


def with_interval(mean: float, high: float, format_: str, sign: str = "") -> str:
    """A mean with the half width of its symmetric interval, nothing where there is no number."""
    if not math.isfinite(mean):
        return ""
    return f"{mean:{sign}{format_}}" + (f" ± {high - mean:{format_}}" if math.isfinite(high) else "")


def short(value: float) -> str:
    """Three digits; nothing where there is no number."""
    return f"{value:#.3g}".rstrip(".") if math.isfinite(value) else ""


def markdown(shown: pd.DataFrame) -> str:
    """A frame of text as a Markdown table; numbers are set to the right."""
    head = list(map(str, shown.columns))
    rules = ["---"] + ["---:"] * (len(head) - 1)
    lines = [head, rules, *([str(cell).replace("|", "\\|") for cell in row] for row in shown.itertuples(index=False))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
