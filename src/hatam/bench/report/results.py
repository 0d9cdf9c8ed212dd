"""A study as one page of Markdown: a figure, the differences by task, and each contender over all tasks."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from ..study.plans import TASKS
from . import plots, tables

MAIN = ("hatam", "schedule-free", "sam")
RIVALS = ("adamw", "schedule-free", "sam")
TITLES = {"steps": "Equal steps", "gradients": "Equal gradients: SAM's steps, or twice as many with one gradient each"}


def render(records: pd.DataFrame, times: pd.DataFrame | None, figures: Path, link: str) -> str:
    """The page's text; figures are written into a folder.

    Args:
        records: of the study.
        times: of ``hatam study time``: ``task``, ``contender``, ``ratio``; None where these were not measured.
        figures: the folder.
        link: how the page names that folder.
    """
    finals = records[records["stage"] == "final"]
    parts, summary = [], tables.summary(finals).sort_values("task", key=in_order, kind="stable")
    for comparison, title in TITLES.items():
        rows = summary[summary["comparison"] == comparison]
        if rows.empty:
            continue
        labels = [label for label in MAIN if label in set(rows["label"])]
        path = plots.differences(rows, labels, figures / f"results-{comparison}")
        whole = tables.overall(finals, comparison, [label for label in RIVALS if label in set(rows["label"])])
        if times is not None:
            whole["time of a step"] = [
                tables.short(times[times["contender"] == label]["ratio"].median()) for label in whole["contender"]
            ]
        seeds = " to ".join(str(n) for n in sorted({rows["n"].min(), rows["n"].max()}))
        parts.append(
            f"## {title}\n\n![Differences to AdamW by task with 95% intervals]({link}/{path.name})\n\n"
            f"{tables.markdown(tables.by_task(rows, labels))}\n\n"
            f"Mean test score with its 95% interval over {seeds} seeds, and differences to AdamW paired by seed. "
            f"Bold: p < 0.01 after Holm's correction over the tasks.\n\n{tables.markdown(whole)}"
        )
    diverged = int((finals["status"] == "diverged").sum())
    parts.append(
        f"Final runs: {len(finals):,}, of which {diverged} diverged. Runs of the search and the selection: "
        f"{len(records) - len(finals):,}."
    )
    return "\n\n".join(parts)


def in_order(tasks: pd.Series[str]) -> pd.Series[int]:
    """The places of tasks in the plan of the study, others after them."""
    return tasks.map(lambda task: TASKS.index(task) if task in TASKS else len(TASKS))
