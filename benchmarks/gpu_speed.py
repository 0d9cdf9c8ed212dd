"""How long a step takes on a GPU; gpu_check.py runs it.

First the step of the optimizer alone, then whole training steps: forward, backward and update. Every contender takes
turns with torch's fused AdamW on the same parameters and gradients. Only these two hold state at a time.

    python benchmarks/gpu_speed.py    fill in docs/speed.md from the records of gpu_check.py
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import common
import torch
from common import REFERENCE, Work, in_turns, made, quartiles, read, table

RECORDS = "results/gpu"
Shapes = list[tuple[int, ...]]
STEPS = 10  # of one turn
SECONDS = 5  # of one comparison, after which there are no more than five rounds
BYTES = 28  # that HATAM's step must move for a float32 parameter: w, g, m, v in, all but g out


def gpt2(layers: int, width: int, vocabulary: int = 50257, context: int = 1024) -> Shapes:
    """The parameters of a GPT-2."""
    layer: Shapes = [(3 * width, width), (3 * width,), (width, width), (width,), (4 * width, width), (4 * width,)]
    layer += [(width, 4 * width), *[(width,)] * 5]
    return [(vocabulary, width), (context, width), *layer * layers, (width,), (width,)]


MODELS: dict[str, Shapes] = {
    "1 M": gpt2(4, 128, 1000, 256),
    "25 M": [(431, 1000)] * 58,
    "125 M": gpt2(12, 768),
    "350 M": gpt2(24, 1024),
    "2,000 tensors of 1,000": [(1000,)] * 2000,
}
CONTENDERS = (REFERENCE, "HATAM", "HATAM relative", "HATAM, bf16 state")
TRAINED: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...]]] = {
    "transformer, 3 M, batch 32 x 64": (common.transformer, (32, 64)),
    "transformer, 86 M, batch 8 x 512": (lambda: common.transformer(768, 12, 12), (8, 512)),
    "conv net, 0.2 M, batch 128": (common.conv_net, (128, 3, 32, 32)),
}


def milliseconds(work: Work) -> float:
    """Of one of several calls, on the device's clock; what the host needs longer than the device is part of it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(STEPS):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / STEPS


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    return dict(zip(("q1", "median", "q3"), quartiles(values), strict=True))


def copy_bandwidth(rounds: int) -> dict[str, Any]:
    """What copying a tensor of 1 GiB reads and writes, in GB/s."""
    source = torch.zeros(2**28, device="cuda")
    target = torch.empty_like(source)
    times = in_turns({"copy": lambda: target.copy_(source)}, rounds, milliseconds)["copy"]
    return {"part": "copy", "gb_per_s": spread([2 * source.nbytes / t / 1e6 for t in times])}


def against_adamw(work: Work, adamw: Work, rounds: int) -> dict[str, Any]:
    """Milliseconds of both in turns."""
    taken = in_turns({"own": work, REFERENCE: adamw}, rounds, milliseconds, limit=SECONDS)
    spreads = {"ms": spread(taken["own"]), "adamw_ms": spread(taken[REFERENCE])}
    return {"n": len(taken["own"]), **spreads, "ratio_to_adamw_fused": spread(common.ratios(taken, "own"))}


def compare(model: str, contender: str, rounds: int) -> dict[str, Any]:
    """One contender's step beside the reference's."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, device="cuda")) for shape in MODELS[model]]
    for p in params:
        p.grad = torch.randn_like(p) * 1e-3
    found = against_adamw(made(contender, params).step, made(REFERENCE, params).step, rounds)
    what = {"part": "step", "model": model, "contender": contender, "tensors": len(params)}
    return {**what, "parameters": sum(p.numel() for p in params), **found}


def train(name: str, rounds: int) -> dict[str, Any]:
    """A training step in bfloat16 autocast with HATAM in mid-schedule beside one with torch's fused AdamW."""
    make_model, shape = TRAINED[name]
    works, text = [], len(shape) == 2
    for contender in ("HATAM", REFERENCE):
        torch.manual_seed(0)
        model = make_model().cuda()
        x = torch.randint(256, shape, device="cuda") if text else torch.randn(shape, device="cuda")
        y = torch.randint(256, shape, device="cuda") if text else torch.randint(10, shape[:1], device="cuda")
        works.append(common.training_step(model, x, y, made(contender, model.parameters()).step, dtype=common.BF16))
    return {"part": "training", "model": name, **against_adamw(*works, rounds)}


def parts(rounds: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """All measurements by name."""
    steps = {f"{m}: {c}": partial(compare, m, c, rounds) for m in MODELS for c in CONTENDERS}
    trainings = {f"training: {name}": partial(train, name, rounds) for name in TRAINED}
    return {"copy": partial(copy_bandwidth, rounds), **steps, **trainings}


def text() -> str:
    """A table of steps, a table of trainings, and where they come from."""
    record, checks = read(f"{RECORDS}/speed.json"), read(f"{RECORDS}/checks.json")["checks"]
    steps, trained = ([x for x in record["speed"] if x["part"] == part] for part in ("step", "training"))
    by_name = {(x["contender"], x["model"]): x for x in steps}
    rows = [[name, *(told(by_name[name, m]) for m in MODELS)] for name in CONTENDERS[1:] if (name, "1 M") in by_name]
    rows.append([f"{REFERENCE}, ms", *(f"{by_name[REFERENCE, m]['ms']['median']:.2f}" for m in MODELS)])
    trainings = [[x["model"], told(x), f"{x['adamw_ms']['median']:.1f}", str(x["n"])] for x in trained]
    copy = next(x["gb_per_s"]["median"] for x in record["speed"] if x["part"] == "copy")
    largest = by_name["HATAM", "350 M"]
    moved, n = BYTES * largest["parameters"] / largest["ms"]["median"] / 1e6, [x["n"] for x in steps]
    about = (
        f"{record['device']}, torch {record['torch']}, Triton {record['triton']}; n = {min(n)} to {max(n)} rounds; "
        f"{sum(checks.values())} of {len(checks)} checks right. On 350 M parameters the kernel moves "
        f"{moved:,.0f} GB/s, where a copy moves {copy:,.0f}."
    )
    head = ["training step, bfloat16 autocast", "HATAM / AdamW fused", "AdamW fused, ms", "n"]
    return f"{about}\n\n{table([f'step time / {REFERENCE}', *MODELS], rows)}\n\n{table(head, trainings)}"


def told(result: dict[str, Any]) -> str:
    """The median ratio with its quartiles."""
    return "{median:.2f} ({q1:.2f}–{q3:.2f})".format(**result["ratio_to_adamw_fused"])


if __name__ == "__main__":
    common.fill_in("docs/speed.md", "gpu", text())
