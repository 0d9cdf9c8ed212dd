"""What evaluation at z costs with BatchNorm's statistics of w, on Fashion-MNIST with a convolutional net.

python benchmarks/batch_norm.py             measure, write results/batch_norm.json, fill in docs/from_adamw.md
python benchmarks/batch_norm.py --render    fill in from the record alone
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatam import HATAM, param_groups, update_bn
from hatam.bench import records, report
from hatam.bench.stats import estimate
from hatam.bench.tasks import find

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "results/batch_norm.json"
SEEDS = range(8)
SHARES = {"half of the training": 0.5, "three quarters": 0.75, "nine tenths": 0.9, "the end": 1.0}
BATCH = 128


def network() -> nn.Module:
    """The task's net with BatchNorm after each convolution."""
    layers: list[nn.Module] = []
    for layer in find("fashion").model():
        layers.append(layer)
        if isinstance(layer, nn.Conv2d):
            layers.append(nn.BatchNorm2d(layer.out_channels))
    return nn.Sequential(*layers)


def train(seed: int) -> dict[str, dict[str, float]]:
    """Accuracy at three points in mid-training and at the end."""
    task = find("fashion")
    data = task.data()
    torch.manual_seed(seed)
    model = network()
    optimizer = HATAM(param_groups(model, weight_decay=0.1), lr=0.003)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, task.steps)
    found = {}
    places = {round(share * task.steps): name for name, share in SHARES.items()}
    for step in range(1, task.steps + 1):
        batch = torch.randint(len(data.train.x), (BATCH,))
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(data.train.x[batch]), data.train.y[batch]).backward()
        optimizer.step()
        schedule.step()
        if step in places:
            found[places[step]] = looked(model, optimizer, data.train.x, data.test)
    return found


def looked(model: nn.Module, optimizer: HATAM, train_x: Tensor, test: Any) -> dict[str, float]:
    """Accuracy on the test data, %, by where the weights and the statistics are."""

    def accuracy() -> float:
        model.eval()
        with torch.no_grad():
            return 100 * (model(test.x).argmax(1) == test.y).float().mean().item()

    kept = {key: x.clone() for key, x in model.state_dict().items()}
    found = {"w": accuracy()}
    with optimizer.straightened():
        found["z, statistics of w"] = accuracy()
    update_bn(train_x.split(BATCH), model, optimizer)
    with optimizer.straightened():
        found["z"] = accuracy()
    model.load_state_dict(kept)
    return found


def table(record: dict[str, Any]) -> str:
    """Means over the seeds with 95% intervals."""
    lines = [
        f"| n = {len(record['seeds'])} | at w | at z, statistics of w | at z, `update_bn` | `update_bn` less none |",
        "|---|---:|---:|---:|---:|",
    ]
    for name in SHARES:
        rows = [run[name] for run in record["runs"]]
        cells = [shown([row[key] for row in rows]) for key in ("w", "z, statistics of w", "z")]
        cells.append(shown([row["z"] - row["z, statistics of w"] for row in rows]))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def shown(values: list[float]) -> str:
    found = estimate(np.array(values))
    return f"{found.mean:.2f} ± {found.half_width:.2f}"


if __name__ == "__main__":
    if "--render" not in sys.argv[1:]:
        torch.set_num_threads(1)
        runs = [train(seed) for seed in SEEDS]
        records.write(RECORD, {"environment": records.environment(), "seeds": [*SEEDS], "runs": runs})
    report.fill_in(ROOT / "docs/from_adamw.md", "batch_norm", table(json.loads(RECORD.read_text(encoding="utf-8"))))
