"""Does the modulator S feed on its own correction? One experiment, one record, one figure.

One parameter gets gradients that are pure noise, each coordinate with its own lognormal scale, so nothing is there to
learn and S should only mirror the scales. In the published form v is built from the corrected gradient, and S from v:
that loop can run away. The forms "raw" and "decoupled" build v from the raw gradient. All of them run without a cap on
S; γ = 0 is AdamW and shows what S is when nothing is corrected.

    python benchmarks/feedback.py             run, write the record, draw the figure, fill in the table
    python benchmarks/feedback.py --render    draw and fill in from the record alone
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import matplotlib
import torch
from torch import Tensor

from hatam import HATAM

matplotlib.use("Agg")  # no display needed
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Record = dict[str, Any]

ROOT = Path(__file__).resolve().parent.parent
FORMS = ("published", "raw", "decoupled")
GAMMAS = (0.0, 0.1, 1.0, 4.0)
COORDINATES = 2000
OPTIONS: dict[str, Any] = {
    "lr": 1e-3,
    "betas": (0.9, 0.999),
    "eps": 1e-8,
    "weight_decay": 0.0,
    "beta_c": 0.9,
    "modulator_cap": math.inf,
}
STYLES = {  # colours that differ in lightness too; widths and dashes keep lines apart that lie on each other
    0.0: {"color": "#BBBBBB", "linewidth": 6.0, "linestyle": "-"},
    0.1: {"color": "#0072B2", "linewidth": 3.5, "linestyle": "-"},
    1.0: {"color": "#E69F00", "linewidth": 2.0, "linestyle": "-"},
    4.0: {"color": "#882255", "linewidth": 1.3, "linestyle": (0, (4, 2))},
}
TABLE_START, TABLE_END = "<!-- feedback:start -->", "<!-- feedback:end -->"


def measured_steps(steps: int, points: int = 60) -> list[int]:
    """Log-spaced step numbers, the first and the last included."""
    return sorted({round(steps ** (i / (points - 1))) for i in range(points)})


def denominator(state: dict[str, Tensor]) -> Tensor:
    """h = sqrt(v̂) + ε from an optimizer's state, in float64."""
    v_hat = state["exp_avg_sq"].double() / (1 - OPTIONS["betas"][1] ** state["step"].item())
    return v_hat.sqrt() + OPTIONS["eps"]


def run(form: str, gamma: float, seed: int, steps: int) -> Record:
    """Feed one optimizer with noise and follow max S = max(h) / mean(h), with both of the same step.

    Runs of the same seed see the same scales and the same noise, whatever their form and γ.
    """
    generator = torch.Generator().manual_seed(seed)
    scale = torch.randn(COORDINATES, generator=generator).exp()
    param = torch.nn.Parameter(torch.zeros(COORDINATES))
    optimizer = HATAM([param], form=form, gamma=gamma, **OPTIONS)
    at, curve = set(measured_steps(steps)), []
    for step in range(1, steps + 1):
        param.grad = scale * torch.randn(COORDINATES, generator=generator)
        optimizer.step()
        if step in at:
            h = denominator(optimizer.state[param])
            curve.append((h.max() / h.mean()).item())
    top = int(h.argmax())
    return {
        "form": form,
        "gamma": gamma,
        "seed": seed,
        "max_modulator": curve,
        "final_max_modulator": curve[-1],
        "final_share_of_mean": (h[top] / h.sum()).item(),
        "final_denominator_over_scale": h[top].item() / scale[top].item(),
    }


def measure(steps: int, seeds: int) -> Record:
    """All runs, with what is needed to repeat them."""
    torch.set_num_threads(1)
    start, setting = time.perf_counter(), environment()
    runs = [run(form, gamma, seed, steps) for form in FORMS for gamma in GAMMAS for seed in range(seeds)]
    return {
        "benchmark": "feedback",
        "config": {
            "coordinates": COORDINATES,
            "gradient": "standard normal noise times a scale per coordinate, exp of a standard normal",
            "steps": steps,
            "seeds": list(range(seeds)),
            "forms": list(FORMS),
            "gammas": list(GAMMAS),
            "options": {**OPTIONS, "modulator_cap": "inf"},  # JSON has no infinity
        },
        "environment": setting,
        "seconds": round(time.perf_counter() - start, 1),
        "steps": measured_steps(steps),
        "runs": runs,
    }


def environment() -> Record:
    """Versions, and whether the source differs from the commit."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
        "commit": git("rev-parse", "HEAD"),
        "source_changed": bool(git("status", "--porcelain", "--", "src/hatam/*.py", "benchmarks/feedback.py")),
    }


def git(*arguments: str) -> str:
    """What git says about this repository."""
    return subprocess.run(("git", *arguments), cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def write(path: Path, text: str) -> None:
    """Replace a file as a whole, so that nobody ever reads half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        tmp.write_text(text, encoding="utf-8")
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


def serialized(record: Record) -> str:
    """The record as JSON with one run a line. NaN and infinity are errors."""
    head = json.dumps({key: value for key, value in record.items() if key != "runs"}, indent=1, allow_nan=False)
    runs = ",\n  ".join(json.dumps(one, allow_nan=False) for one in record["runs"])
    return f'{head[:-2]},\n "runs": [\n  {runs}\n ]\n}}\n'


def chosen(record: Record, form: str, gamma: float) -> list[Record]:
    """The runs of one form and γ, one a seed."""
    return [one for one in record["runs"] if one["form"] == form and one["gamma"] == gamma]


def table(record: Record) -> str:
    """The final values as a Markdown table."""
    rows = [
        "| form | γ | median final max S | range | its share of the mean | its h / its noise | n |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for form in record["config"]["forms"]:
        for gamma in record["config"]["gammas"]:
            runs = chosen(record, form, gamma)
            final = [one["final_max_modulator"] for one in runs]
            share = statistics.median(one["final_share_of_mean"] for one in runs)
            inflation = statistics.median(one["final_denominator_over_scale"] for one in runs)
            rows.append(
                f"| {form} | {gamma:g} | {statistics.median(final):,.1f} | {min(final):,.1f} to {max(final):,.1f} "
                f"| {share:.1%} | {inflation:,.2f} | {len(runs)} |"
            )
    return "\n".join(rows)


def draw_form(axes: Axes, record: Record, form: str) -> None:
    """One panel: the median over seeds of each γ, its range shaded."""
    ends = []
    for gamma in record["config"]["gammas"]:
        curves = list(zip(*(one["max_modulator"] for one in chosen(record, form, gamma)), strict=True))
        medians = [statistics.median(values) for values in curves]
        label = f"γ = {gamma:g}" + (" (AdamW)" if gamma == 0 else "")
        axes.plot(record["steps"], medians, label=label, **STYLES[gamma])
        low, high = [min(values) for values in curves], [max(values) for values in curves]
        axes.fill_between(record["steps"], low, high, color=STYLES[gamma]["color"], alpha=0.15, linewidth=0)
        ends.append(medians[-1])
    axes.set_title(form)
    if max(ends) < 1.001 * min(ends):
        axes.text(0.5, 0.4, "all four lines coincide", transform=axes.transAxes, ha="center", va="top", color="#555555")
    axes.set(xscale="log", yscale="log", xlabel="step", xlim=(1, record["steps"][-1]))
    axes.grid(which="major", color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def draw(record: Record, stem: Path) -> None:
    """Write the figure as PNG and SVG, the same bytes for the same record and matplotlib."""
    forms, n = record["config"]["forms"], len(record["config"]["seeds"])
    with plt.rc_context({"svg.hashsalt": "hatam-feedback", "font.size": 10}):
        figure, panels = plt.subplots(1, len(forms), figsize=(10, 3.8), sharey=True, layout="constrained")
        for axes, form in zip(panels, forms, strict=True):
            draw_form(axes, record, form)
        bound = record["config"]["coordinates"]
        for axes in panels:
            axes.axhline(bound, color="#555555", linewidth=0.8, linestyle=":")
        panels[-1].text(1.2, bound * 0.93, "one coordinate is the whole sum", va="top", fontsize=8, color="#555555")
        panels[0].set_ylabel("max S = max(h) / mean(h)")
        panels[1].legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.92))
        figure.suptitle(f"Pure noise, no cap on S: median over {n} seeds, range shaded", fontsize=11)
        stem.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(stem.with_suffix(".png"), dpi=150)
        figure.savefig(stem.with_suffix(".svg"), metadata={"Date": None})
        plt.close(figure)


def fill_in(page: Path, text: str) -> None:
    """Put a table between the markers of a page."""
    old = page.read_text(encoding="utf-8")
    before, start, rest = old.partition(TABLE_START)
    _, end, after = rest.partition(TABLE_END)
    if not (start and end):
        raise ValueError(f"{page} lacks the markers {TABLE_START} and {TABLE_END}, in this order; add them")
    write(page, f"{before}{start}\n\n{text}\n\n{end}{after}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--records", type=Path, default=ROOT / "results/feedback/feedback.json", help="the record")
    parser.add_argument("--figure", type=Path, default=ROOT / "docs/figures/feedback", help="without a suffix")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/algorithm.md", help="gets the table")
    parser.add_argument("--render", action="store_true", help="do not run, only draw from the record")
    return parser.parse_args()


def main() -> None:
    """Run unless told not to, then draw from the record."""
    options = arguments()
    if not options.render:
        write(options.records, serialized(measure(options.steps, options.seeds)))
    record = json.loads(options.records.read_text(encoding="utf-8"))
    draw(record, options.figure)
    fill_in(options.page, table(record))
    print(table(record))


if __name__ == "__main__":
    main()
