"""What smaller state costs in accuracy: a byte transformer trained on Python's help texts, paired by seed.

The weights of the bfloat16 variants are stored in bfloat16 and widened for the forward pass, so that their storage is
all that differs. Every seed is another start and another order of the data, the same for all variants.

    python benchmarks/small_state.py             train what is missing, write records, fill in the table
    python benchmarks/small_state.py --render    fill in from the records alone
"""

from __future__ import annotations

import argparse
import json
import math
import re
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import models
import torch
from scipy import stats
from torch import Tensor

from hatam import HATAM
from hatam.bench import records, report

ROOT = Path(__file__).resolve().parent.parent
BF16 = torch.bfloat16
STEPS, BATCH_SIZE, CONTEXT, LR, BETAS = 300, 32, 64, 3e-3, (0.9, 0.95)
BASE = "float32"

VARIANTS: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    BASE: (torch.float32, {}),
    "m in bfloat16": (torch.float32, {"state_dtype": BF16}),
    "8-bit m and v": (torch.float32, {"state_dtype": "8bit"}),
    "weights and state in bfloat16, to nearest": (BF16, {}),
    "weights and state in bfloat16, at random": (BF16, {"bf16_stochastic_round": True}),
    "weights in bfloat16 at random, state in float32": (
        BF16,
        {"bf16_stochastic_round": True, "state_dtype": torch.float32},
    ),
    "weights and m in bfloat16 at random, v in float32": (BF16, {"bf16_stochastic_round": True, "state_dtype": BF16}),
    "AdamW, float32": (torch.float32, {"gamma": 0.0}),
    "AdamW, weights and state in bfloat16, to nearest": (BF16, {"gamma": 0.0}),
    "AdamW, weights and state in bfloat16, at random": (BF16, {"gamma": 0.0, "bf16_stochastic_round": True}),
}


def train(variant: str, seed: int) -> dict[str, Any]:
    """Train once; the loss on the text that training never saw, in nats per byte."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    dtype, options = VARIANTS[variant]
    text = models.text()
    cut = int(0.9 * len(text))
    model = models.Transformer(context=CONTEXT)
    wide = list(model.parameters())
    stored = [torch.nn.Parameter(p.detach().to(dtype)) for p in wide]
    optimizer = HATAM(stored, LR, betas=BETAS, seed=seed, **options)
    generator = torch.Generator().manual_seed(seed)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = LR * schedule(step + 1)
        load(wide, stored)
        model.zero_grad()
        x, y = models.windows(text[:cut], BATCH_SIZE, CONTEXT, generator)
        models.loss(model(x), y).mean().backward()
        for p, q in zip(stored, wide, strict=True):
            p.grad = q.grad.to(dtype)
        optimizer.step()
    load(wide, stored)
    state = [x for s in optimizer.state.values() for x in s.values() if x.dim()]
    return {
        "variant": variant,
        "seed": seed,
        "validation_loss": validation(model, text[cut:]),
        "bytes_of_state": sum(x.numel() * x.element_size() for x in state if type(x) is Tensor)
        + sum(x.codes.nbytes + x.scale.nbytes for x in state if type(x) is not Tensor),
        "parameters": sum(p.numel() for p in stored),
        "environment": records.environment(),
    }


def schedule(step: int, warm_up: int = 50) -> float:
    """A linear warm-up, then half a cosine to 0 at the last step."""
    return min(step / warm_up, 0.5 * (1 + math.cos(math.pi * max(0, step - warm_up) / (STEPS - warm_up))))


def load(wide: list[Tensor], stored: list[Tensor]) -> None:
    with torch.no_grad():
        for p, q in zip(wide, stored, strict=True):
            p.copy_(q)


@torch.no_grad()
def validation(model: torch.nn.Module, text: Tensor) -> float:
    """Over all of the text, in pieces that do not overlap."""
    pieces = text[: len(text) // (CONTEXT + 1) * (CONTEXT + 1)].view(-1, CONTEXT + 1)
    losses = [models.loss(model(batch[:, :-1]), batch[:, 1:]) for batch in pieces.split(64)]
    return float(torch.cat(losses).mean())


def path(root: Path, variant: str, seed: int) -> Path:
    return root / re.sub(r"\W+", "-", variant) / f"{seed}.json"


def run(root: Path, seeds: int, workers: int) -> None:
    """Train what has no record yet, several at a time."""
    missing = [(v, s) for s in range(seeds) for v in VARIANTS if not path(root, v, s).exists()]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        for future in as_completed([pool.submit(train, *job) for job in missing]):
            record = future.result()
            records.write(path(root, record["variant"], record["seed"]), record)
            print(record["variant"], record["seed"], round(record["validation_loss"], 4), flush=True)


def table(root: Path, seeds: int) -> str:
    """Means, and differences to float32 paired by seed with their 95 % interval by Student's t."""
    found = {v: [json.loads(path(root, v, s).read_text(encoding="utf-8")) for s in range(seeds)] for v in VARIANTS}
    base = [r["validation_loss"] for r in found[BASE]]
    rows = [
        "| stored | state, B per parameter | validation loss | difference to float32, 95 % interval | p | n |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for variant, runs in found.items():
        losses = [r["validation_loss"] for r in runs]
        size = runs[0]["bytes_of_state"] / runs[0]["parameters"]
        mean = sum(losses) / seeds
        difference, p = "", ""
        if variant != BASE:
            test = stats.ttest_rel(losses, base)
            low, high = test.confidence_interval(0.95)
            difference, p = f"{mean - sum(base) / seeds:+.4f} ({low:+.4f} to {high:+.4f})", f"{test.pvalue:.2g}"
        rows.append(f"| {variant} | {size:.2f} | {mean:.4f} | {difference} | {p} | {seeds} |")
    return "\n".join(rows)


def main() -> None:
    """Train unless told not to, then fill in from the records."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--records", type=Path, default=ROOT / "results/small_state")
    parser.add_argument("--render", action="store_true", help="do not train, only fill in from the records")
    options = parser.parse_args()
    if not options.render:
        run(options.records, options.seeds, options.workers)
    report.fill_in(ROOT / "docs/speed.md", "small-state", table(options.records, options.seeds))


if __name__ == "__main__":
    main()
