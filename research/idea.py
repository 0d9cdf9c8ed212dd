"""The picture of the README: HATAM in a valley, its weights and the points at which it takes its gradients.

python -m research.idea    run HATAM, draw docs/figures/idea.svg
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hatam import HATAM

from .check import ROOT, save

FIGURE = ROOT / "docs/figures/idea.svg"
STEPS, ARROWS = 60, range(20, 50, 4)
LR, START, NOISE = 0.22, (-4.0, 0.6), 1.5


def valley(x: Tensor, y: Tensor) -> Tensor:
    """A loss that is steep across a valley, less so further right, and flat along it."""
    return (0.3 + 4 * torch.sigmoid(-x)) * (y - 0.25 * torch.sin(0.8 * x)) ** 2 - 0.5 * x


def trajectory() -> tuple[list[Any], list[Any]]:
    """HATAM's z and w after every step, with the noise of small batches in the gradients."""
    point, rng = torch.nn.Parameter(torch.tensor([START])), torch.Generator().manual_seed(1)
    optimizer = HATAM([point], lr=LR, betas=(0.8, 0.95), weight_decay=0.0, gamma=9.0, travel=0.0, horizon=3.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    zs, ws = [], []
    for _ in range(STEPS):
        optimizer.zero_grad()
        valley(*point[0]).backward()
        assert point.grad is not None
        point.grad += NOISE * torch.tensor([0.3, 1.0]) * torch.randn(point.shape, generator=rng)
        optimizer.step()
        schedule.step()
        ws.append(point[0].tolist())
        with optimizer.straightened():
            zs.append(point[0].tolist())
    return zs, ws


def draw(axes: Any) -> None:
    """The loss as contours, z as a line, and arrows from z to w."""
    zs, ws = trajectory()
    x, y = torch.meshgrid(torch.linspace(-4.6, 1.0, 50), torch.linspace(-1.1, 1.3, 30), indexing="xy")
    axes.contourf(x, y, valley(x, y), torch.linspace(-2.4, 5, 14).tolist(), cmap="Blues", extend="both", alpha=0.5)
    z, w = zip(*zs, strict=True), zip(*(ws[t] for t in ARROWS), strict=True)
    axes.plot(*z, ".-", color="black", linewidth=0.8, label="z: AdamW's iterate, to evaluate and to publish")
    axes.plot(*w, "s", color="C3", markersize=5, label="w: where the gradient is taken")
    for t in ARROWS:
        axes.annotate("", ws[t], zs[t], arrowprops={"arrowstyle": "->", "color": "C3", "linewidth": 1.4})
    axes.legend(loc="upper right", fontsize=8)
    axes.set(xticks=[], yticks=[])


if __name__ == "__main__":
    save(FIGURE, draw)
