"""What the measurements share: contenders, turns, two small models, pages and records."""

from __future__ import annotations

import json
import math
import random
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatam import HATAM, PublishedHATAM

ROOT = Path(__file__).resolve().parent.parent
BF16 = torch.bfloat16
Work = Callable[[], Any]
Clock = Callable[[Work], float]

# Contenders -----------------------------------------------------------------------------------------------------------


Kind = TypeVar("Kind", bound=torch.optim.Optimizer)


def halfway(optimizer: Kind) -> Kind:
    """The optimizer in the second half of a schedule, where every step undoes one reach and makes another."""
    for group in optimizer.param_groups:
        group["lr_peak"] = 2 * group["lr"]
    return optimizer


def reaching(params: Any, lr: Any = 1e-3, **options: Any) -> HATAM:
    """HATAM :func:`halfway`, with a reach in every tensor."""
    return halfway(HATAM(params, lr, travel=0.0, hidden=True, **options))


REFERENCE = "AdamW fused"
CONTENDERS: dict[str, tuple[Callable[..., torch.optim.Optimizer], dict[str, Any]]] = {
    REFERENCE: (torch.optim.AdamW, {"fused": True}),
    "AdamW foreach": (torch.optim.AdamW, {"foreach": True}),
    "HATAM": (reaching, {}),
    "HATAM relative": (reaching, {"modulator": "relative"}),
    "HATAM, bf16 state": (reaching, {"state_dtype": BF16}),
    "HATAM foreach": (reaching, {"foreach": True}),
    "HATAM single": (reaching, {"foreach": False}),
    "PublishedHATAM": (PublishedHATAM, {}),
}


def made(name: str, params: Any) -> torch.optim.Optimizer:
    """One of them."""
    make, options = CONTENDERS[name]
    return make(params, **options)


# Turns ----------------------------------------------------------------------------------------------------------------


def seconds(work: Work) -> float:
    """Of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turns(
    works: dict[str, Work], rounds: int, clock: Clock = seconds, warm_up: int = 3, limit: float = math.inf
) -> dict[str, list[float]]:
    """What each takes in every round, in an order drawn anew; after ``limit`` seconds no more than five rounds."""
    order, start = random.Random(0), time.perf_counter()
    taken: dict[str, list[float]] = {name: [] for name in works}
    for i in range(warm_up + rounds):
        if time.perf_counter() - start > limit and i >= warm_up + 5:
            break
        for name in order.sample(list(works), len(works)):  # nobody always comes after the same one
            taken[name].append(clock(works[name]))
    return {name: found[warm_up:] for name, found in taken.items()}


def quartiles(values: Iterable[float]) -> list[float]:
    """The lower one, the median and the upper one."""
    return statistics.quantiles(values, n=4, method="inclusive")


def ratios(taken: dict[str, list[float]], name: str) -> list[float]:
    """Of each turn to that of torch's fused AdamW in the same round."""
    return [x / y for x, y in zip(taken[name], taken[REFERENCE], strict=True)]


def shown(values: Iterable[float], digits: int = 2) -> str:
    """The median with quartiles."""
    low, middle, high = quartiles(values)
    return f"{middle:.{digits}f} ({low:.2f}–{high:.2f})"


# Models ---------------------------------------------------------------------------------------------------------------


def transformer(width: int = 256, layers: int = 4, heads: int = 4) -> nn.Module:
    """Of bytes; pre-norm blocks without positions or a mask, which cost next to nothing."""
    options: dict[str, Any] = {"dropout": 0.0, "activation": "gelu", "batch_first": True, "norm_first": True}
    block = nn.TransformerEncoderLayer(width, heads, 4 * width, **options)
    body = nn.TransformerEncoder(block, layers, nn.LayerNorm(width), enable_nested_tensor=False)
    return nn.Sequential(nn.Embedding(256, width), body, nn.Linear(width, 256))


def conv_net(width: int = 32) -> nn.Module:
    """Four convolutions with BatchNorm for 32 × 32 images of 10 classes."""
    layers: list[nn.Module] = []
    channels = [3, width, 2 * width, 4 * width, 4 * width]
    for i, (before, after) in enumerate(pairwise(channels)):
        layers += [nn.Conv2d(before, after, 3, stride=1 + (i > 0), padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 10))


def training_step(model: nn.Module, x: Tensor, y: Tensor, *moves: Work, dtype: torch.dtype | None = None) -> Work:
    """Forward, backward and update, each move after a gradient of its own; with a dtype in autocast."""

    def step() -> None:
        for move in moves:
            model.zero_grad()
            with torch.autocast(x.device.type, dtype, enabled=dtype is not None):
                loss = F.cross_entropy(model(x).flatten(0, -2), y.flatten())
            loss.backward()
            move()

    return step


# Pages and records ----------------------------------------------------------------------------------------------------


def read(path: str) -> Any:
    """A JSON file of the repository."""
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def fill_in(page: str, marker: str, text: str) -> None:
    """Put a text into a page of the repository."""
    from hatam.bench import report  # needs the extra, which a machine with a GPU may lack

    report.fill_in(ROOT / page, marker, text)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown; the first column is text."""
    lines = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
