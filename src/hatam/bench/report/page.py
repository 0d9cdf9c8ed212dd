"""Records as one page with its figures and a CSV file beside it. It runs no code that a record names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from ..stats import estimate
from ..terminal import plain
from . import plots, tables

HERE = Path(__file__).parent


def write(records: pd.DataFrame, source: str, out: Path) -> Path:
    """Write ``index.html``, ``summary.csv`` and the figures into a folder; returns the page.

    Raises:
        ValueError: there is no final run.
    """
    finals = records[records["stage"] == "final"] if len(records) else records
    if not len(finals):
        raise ValueError(f"{source} holds no final run; make some with 'hatam compare --records FOLDER'")
    out.mkdir(parents=True, exist_ok=True)
    rows = tables.summary(finals)
    rows.to_csv(out / "summary.csv", index=False, float_format="%.6g")
    sections = [
        _section(group, finals, key, number, out)
        for number, (key, group) in enumerate(rows.groupby(["comparison", "task", "metric"], sort=False))
    ]
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True)
    page = out / "index.html"
    style = Markup((HERE / "page.css").read_text(encoding="utf-8"))
    html = environment.get_template("page.html.j2").render(
        source=plain(source),
        runs=len(finals),
        diverged=int((finals["status"] == "diverged").sum()),
        sections=sections,
        style=style,
    )
    page.write_text(html, encoding="utf-8")
    return page


def _section(group: pd.DataFrame, finals: pd.DataFrame, key: Any, number: int, out: Path) -> dict[str, Any]:
    """A comparison on a task: its table and its figures, each told in words."""
    comparison, task, metric = key
    own = finals[(finals["comparison"] == comparison) & (finals["task"] == task) & (finals["metric"] == metric)]
    where = f", equal {comparison}" if comparison else ""
    shown = tables.compared(group)
    means = "; ".join(f"{plain(r.label)} {r.mean:.4g}" for r in group.itertuples())
    drawn = {
        "Learning curves": plots.curves(own, out / f"curves-{number}"),
        "Score against the time of a step": plots.cost(own, out / f"cost-{number}"),
    }
    figures = [
        (path.name, f"{title} on {plain(task)}. Mean test scores: {means}.") for title, path in drawn.items() if path
    ]
    seeds = estimate(list(group["n"].astype(float))).mean
    better = "higher" if group["higher_is_better"].iloc[0] else "lower"
    title = f"{plain(task)}{where}: {plain(metric)}, {better} is better, {seeds:.3g} seeds"
    return {"title": title, "table": shown, "figures": figures}
