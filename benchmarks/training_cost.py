"""What a whole training step costs with HATAM, with AdamW and with SAM: forward, backward and update.

Every contender trains a copy of the same model on the same batch, in an order drawn anew in every round; a ratio is
that of one turn to AdamW's in the same round.

    python benchmarks/training_cost.py             measure, write the record, fill in the table
    python benchmarks/training_cost.py --render    fill in from the record alone
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import models
import torch
from pytorch_optimizer import SAM
from torch import Tensor, nn

from hatam.bench import records, report
from hatam.bench.sam import SAMTrainer
from hatam.bench.trainers import Trainer

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = "AdamW fused"
BATCH_SIZES = (8, 32, 128)
BF16 = torch.bfloat16

CONTENDERS: dict[str, Callable[[nn.Module], Trainer]] = {
    REFERENCE: lambda m: Trainer(m, models.loss, torch.optim.AdamW(m.parameters(), fused=True)),
    "HATAM": lambda m: Trainer(m, models.loss, models.reaching(m.named_parameters())),
    "HATAM, bf16 state": lambda m: Trainer(m, models.loss, models.reaching(m.named_parameters(), state_dtype=BF16)),
    "HATAM foreach": lambda m: Trainer(m, models.loss, models.reaching(m.named_parameters(), foreach=True)),
    "SAM": lambda m: SAMTrainer(m, models.loss, SAM(m.parameters(), torch.optim.AdamW, fused=True)),
}


def images(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, 32, 32, generator=generator), torch.randint(10, (n,), generator=generator)


def pieces(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return models.windows(models.text(), n, 64, generator)


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int, torch.Generator], tuple[Tensor, Tensor]]]] = {
    "conv net": (models.conv_net, images),
    "transformer": (lambda: models.Transformer(width=256, layers=4), pieces),
}


def timed(name: str, batch_size: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of a training step of every contender in every round."""
    torch.manual_seed(0)
    make, draw = MODELS[name]
    model, (x, y) = make(), draw(batch_size, torch.Generator().manual_seed(1))
    trainers = {key: make_trainer(copy.deepcopy(model)) for key, make_trainer in CONTENDERS.items()}
    for trainer in trainers.values():
        for _ in range(2):
            trainer.step(x, y)
    names, seconds = list(trainers), {key: [] for key in trainers}
    order = random.Random(0)
    for _ in range(rounds):
        for key in order.sample(names, len(names)):  # nobody always comes after the same one
            start = time.perf_counter()
            trainers[key].step(x, y)
            seconds[key].append(time.perf_counter() - start)
    return seconds


def measure(rounds: int, record: Path) -> None:
    """Every model and batch size, written as soon as it is there."""
    result: dict[str, Any] = {
        "benchmark": "training cost",
        "environment": {**records.environment(), "threads": torch.get_num_threads()},
        "reference": REFERENCE,
        "cases": [],
    }
    for name, (make, _) in MODELS.items():
        for batch_size in BATCH_SIZES:
            case = {"model": name, "parameters": sum(p.numel() for p in make().parameters()), "batch_size": batch_size}
            result["cases"].append({**case, "rounds": rounds, "seconds": timed(name, batch_size, rounds)})
            records.write(record, result)
            print(cells(result["cases"][-1]), flush=True)


def cells(case: dict[str, Any]) -> list[str]:
    """The median ratio to AdamW of every contender, with its quartiles."""
    texts = []
    for seconds in case["seconds"].values():
        ratios = [x / y for x, y in zip(seconds, case["seconds"][REFERENCE], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        texts.append(f"{middle:.3f} ({low:.2f}–{high:.2f})")
    return texts


def table(record: dict[str, Any]) -> str:
    """A Markdown table, a row for each model and batch size."""
    head = ["training step", "batch", *CONTENDERS, "n"]
    rows = [f"| {' | '.join(head)} |", "|---|" + "---:|" * (len(head) - 1)]
    for case in record["cases"]:
        what = f"{case['model']}, {case['parameters']:,} parameters"
        rows.append(f"| {what} | {case['batch_size']} | {' | '.join(cells(case))} | {case['rounds']} |")
    return "\n".join(rows)


def main() -> None:
    """Measure unless told not to, then fill in from the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--record", type=Path, default=ROOT / "results/step_cost/training_cost.json")
    parser.add_argument("--render", action="store_true", help="do not measure, only fill in from the record")
    options = parser.parse_args()
    if not options.render:
        measure(options.rounds, options.record)
    record = json.loads(options.record.read_text(encoding="utf-8"))
    report.fill_in(ROOT / "docs/speed.md", "training-cost", table(record))


if __name__ == "__main__":
    main()
