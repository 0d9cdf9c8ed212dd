"""A picture of the loss around the minima of several contenders, and the command ``hatam landscape``.

A plane through each minimum is spanned by two random directions that are normalized filter by filter: every row of a
weight matrix, and every filter of a convolution, gets a direction as long as itself, and biases and norms stay
(arXiv 1712.09913). So an axis means the same for networks whose weights have other sizes, and all have the same axes.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import torch
import typer
from matplotlib.figure import Figure
from torch import Tensor, nn

from . import records
from .contenders import parse
from .records import Run
from .report.load import number
from .tasks import Task, ready
from .terminal import plain_console
from .training import carry_out, prepare

SAMPLES = 1000  # of the training data, the first ones
LEVELS = 12
DIRECTIONS = 1_000_000  # where their seeds begin
console = plain_console()
Row = list[float]


def landscape(
    task: Annotated[str, typer.Option(help="One of 'hatam tasks', or your own: ./file.py:TASK or module:TASK.")],
    contender: Annotated[
        list[str] | None, typer.Option(help="NAME or NAME:option=value,…. Default: adamw, sam, hatam.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of networks, batches and directions.")] = 0,
    points: Annotated[int, typer.Option(min=3, help="Along each axis.")] = 21,
    span: Annotated[float, typer.Option(min=0.01, help="How far an axis goes, in lengths of a filter.")] = 1.0,
    steps: Annotated[int | None, typer.Option(min=2, help="Steps of a run. Default: the task's.")] = None,
    record: Annotated[Path | None, typer.Option(help="Where the numbers go. Default: beside the picture.")] = None,
    out: Annotated[Path, typer.Option(help="The picture, .svg or .png.")] = Path("runs/landscape.svg"),
) -> None:
    """Draw the training loss around the minima of contenders, in filter-normalized directions, on common axes.

    Example: hatam landscape --task mnist1d-mlp-plain --contender adamw --contender hatam:gamma=1
    """
    where = ready(task)
    surfaces = []
    for spec in contender or ["adamw", "sam", "hatam"]:
        console.print(f"{spec} …")
        surfaces.append({"contender": spec, **around(where, spec, seed, points, span, steps)})
    found = {"task": task, "seed": seed, "span": span, "environment": records.environment(), "surfaces": surfaces}
    records.write(record or out.with_suffix(".json"), found)
    draw(found, out)
    console.print(f"{out}", soft_wrap=True)


def around(task: Task, spec: str, seed: int, points: int, span: float, steps: int | None = None) -> dict[str, Any]:
    """Train a contender, and look at the loss around where it ends.

    Returns:
        ``loss``, rows from −span to span along the second direction, and the validation score.
    """
    entry, options = parse(spec, task.name)
    run = Run(task.name, spec, entry.name, options, seed, steps or task.steps, task.batch_size, task.warmup, "tune")
    trainer = prepare(task, run)
    ended = carry_out(task, run, trainer)
    train = task.data().train
    x, y = train.x[:SAMPLES], train.y[:SAMPLES]
    with trainer.evaluation():
        loss = surface(trainer.model, lambda: task.loss(trainer.model(x), y).mean(), seed, points, span)
    return {"loss": loss, "validation": ended["result"]["validation"]}


@torch.no_grad()
def surface(model: nn.Module, loss: Any, seed: int, points: int, span: float) -> list[Row]:
    """The loss on a grid around the present weights, which are put back to the last bit.

    Args:
        model: in evaluation mode meanwhile, as batch statistics would follow every step.
        loss: of the model at its present weights.
        seed: of the directions.
        points, span: of each axis, which goes from −span to span.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> grid = surface(model, lambda: model(torch.ones(1, 2)).square().mean(), seed=0, points=3, span=1.0)
        >>> len(grid), len(grid[0])
        (3, 3)
    """
    params = [p for p in model.parameters() if p.requires_grad]
    start = [p.clone() for p in params]
    first, second = ([filter_normalized(p, rng) for p in params] for rng in _generators(seed))
    axis = torch.linspace(-span, span, points).tolist()
    mode = model.training
    model.eval()
    rows = []
    try:
        for b in axis:
            row = []
            for a in axis:
                for p, w, u, v in zip(params, start, first, second, strict=True):
                    p.copy_(w + a * u + b * v)
                row.append(float(loss()))
            rows.append(row)
    finally:
        model.train(mode)
        for p, w in zip(params, start, strict=True):
            p.copy_(w)
    return rows


def _generators(seed: int) -> tuple[torch.Generator, torch.Generator]:
    """Of neither a network's first weights nor a task's data, which begin with seeds from 0."""
    first = DIRECTIONS + 2 * seed
    return torch.Generator().manual_seed(first), torch.Generator().manual_seed(first + 1)


def filter_normalized(w: Tensor, rng: torch.Generator) -> Tensor:
    """A random direction whose filters are as long as those of ``w``; 0 for vectors, as biases and norms are."""
    if w.dim() < 2:
        return torch.zeros_like(w)
    d = torch.randn(w.shape, generator=rng).to(w)
    norms = [x.flatten(1).norm(dim=1).clamp_min(torch.finfo(w.dtype).tiny) for x in (w, d)]
    lengths: Tensor = norms[0] / norms[1]
    return d * lengths.view(-1, *[1] * (w.dim() - 1))


def draw(found: dict[str, Any], path: Path) -> None:
    """A panel for each contender, all with the same axes and levels; one that diverged has none of them.

    Raises:
        ValueError: all of them diverged.
    """
    surfaces, span = found["surfaces"], found["span"]
    grids = [torch.tensor([[number(x) for x in row] for row in one["loss"]]) for one in surfaces]
    finite = [grid[grid.isfinite()] for grid in grids if grid.isfinite().any()]
    if not finite:
        raise ValueError("no contender has a finite loss: all diverged; take a smaller lr")
    low = min(float(grid.min()) for grid in finite)
    high = max(float(grid.median()) for grid in finite)
    high = max(high, 1.01 * low)
    levels = torch.logspace(math.log10(max(low, 1e-8)), math.log10(max(high, 2e-8)), LEVELS).tolist()
    axis = torch.linspace(-span, span, len(grids[0])).tolist()
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "hatam", "svg.fonttype": "none", "font.size": 8}):
        figure = Figure(figsize=(2.7 * len(surfaces) + 0.6, 3.1), layout="constrained")
        panels = figure.subplots(1, len(surfaces), sharex=True, sharey=True, squeeze=False)[0]
        for axes, one, grid in zip(panels, surfaces, grids, strict=True):
            drawn = axes.contourf(axis, axis, grid.tolist(), levels, cmap="viridis", norm="log", extend="both")
            axes.plot(0, 0, "+", color="white")
            axes.set(title=f"{one['contender']}: {one['validation']:.4g}", xlabel="first direction", aspect="equal")
        panels[0].set_ylabel("second direction")
        figure.colorbar(drawn, ax=panels, label="training loss", format="%.2g")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
