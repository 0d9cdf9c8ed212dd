"""A picture of the training loss around the minima of AdamW, SAM and HATAM.

A plane through each minimum is spanned by two random directions that are normalized filter by filter: every row of a
weight matrix gets a direction as long as itself, and biases stay (arXiv 1712.09913). So an axis means the same for
networks whose weights have other sizes, and all have the same axes.

python -m research.landscape             train, write the record, draw
python -m research.landscape --render    draw the record
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hatam.bench import files

from .check import ROOT, save
from .networks import Training

RECORD, FIGURE = ROOT / "results/theory/landscape.json", ROOT / "docs/figures/landscape.svg"
CONTENDERS = ("AdamW", "SAM", "HATAM")
POINTS, SPAN, LEVELS = 21, 1.0, 12
SEEDS = (1_000_000, 1_000_001)  # of the directions: of no network and of no data


def around(contender: str, seed: int = 0, steps: int = 2000, points: int = POINTS) -> dict[str, Any]:
    """Train a contender, and look at the loss around where it ends, in rows along the second direction."""
    training = Training(contender, seed, steps)
    for _ in training.run(every=steps):
        pass
    with training.evaluation():
        loss = surface(training.model, lambda: float(training.loss()), points)
    return {"contender": contender, "loss": loss, "validation": training.accuracy()}


@torch.no_grad()
def surface(model: nn.Module, loss: Callable[[], float], points: int) -> list[list[float]]:
    """The loss on a grid around the present weights, which are put back to the last bit."""
    params = list(model.parameters())
    start = [p.clone() for p in params]
    rngs = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    first, second = ([filter_normalized(p, rng) for p in params] for rng in rngs)
    axis, rows = torch.linspace(-SPAN, SPAN, points).tolist(), []
    for b in axis:
        rows.append([])
        for a in axis:
            for p, w, u, v in zip(params, start, first, second, strict=True):
                p.copy_(w + a * u + b * v)
            rows[-1].append(loss())
    for p, w in zip(params, start, strict=True):
        p.copy_(w)
    return rows


def filter_normalized(w: Tensor, rng: torch.Generator) -> Tensor:
    """A random direction whose rows are as long as those of ``w``; 0 for vectors."""
    if w.dim() < 2:
        return torch.zeros_like(w)
    d = torch.randn(w.shape, generator=rng).to(w)
    norms = [x.flatten(1).norm(dim=1).clamp_min(torch.finfo(w.dtype).tiny) for x in (w, d)]
    return d * (norms[0] / norms[1]).view(-1, *[1] * (w.dim() - 1))


def draw(surfaces: list[dict[str, Any]], panels: Any) -> None:
    """A panel for each contender, all with the same axes and levels."""
    grids = [torch.tensor(one["loss"]) for one in surfaces]
    low, high = (float(f([float(g(x)) for x in grids])) for f, g in ((min, torch.min), (max, torch.median)))
    levels = torch.logspace(math.log10(low), math.log10(high), LEVELS).tolist()
    axis = torch.linspace(-SPAN, SPAN, len(grids[0])).tolist()
    for axes, one in zip(panels, surfaces, strict=True):
        drawn = axes.contourf(axis, axis, one["loss"], levels, cmap="viridis", norm="log", extend="both")
        axes.plot(0, 0, "+", color="white")
        axes.set(title=f"{one['contender']}: {one['validation']:.1f}%", xlabel="first direction", aspect="equal")
    panels[0].set_ylabel("second direction")
    panels[0].figure.colorbar(drawn, ax=panels, label="training loss", format="%.2g")


if __name__ == "__main__":
    if "--render" not in sys.argv:
        surfaces = [around(contender) for contender in CONTENDERS]
        files.write(RECORD, {"environment": files.environment(), "surfaces": surfaces})
    found = json.loads(RECORD.read_text(encoding="utf-8"))["surfaces"]
    save(FIGURE, partial(draw, found), panels=len(found))
