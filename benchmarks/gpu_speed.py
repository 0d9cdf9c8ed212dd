"""How long a step takes on a GPU, and what memory: the second half of gpu_check.py.

Every contender is paired with torch's fused AdamW on the same parameters and gradients: they take turns, so that a slow
moment harms both alike, and a ratio is that of the two turns of one round. Only these two hold state at a time.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from typing import Any

import torch

from hatam import HATAM

Params = list[torch.nn.Parameter]
Shapes = list[tuple[int, ...]]

STEPS = 10  # of one turn
WARM_UP = 3  # turns
BF16 = torch.bfloat16


def transformer(layers: int, width: int, vocabulary: int = 50257, context: int = 1024) -> Shapes:
    """The parameters of a GPT-2."""
    layer: Shapes = [(3 * width, width), (3 * width,), (width, width), (width,), (4 * width, width), (4 * width,)]
    layer += [(width, 4 * width), *[(width,)] * 5]
    return [(vocabulary, width), (context, width), *layer * layers, (width,), (width,)]


MODELS: dict[str, Shapes] = {
    "1 M": transformer(4, 128, 1000, 256),
    "25 M": [(431, 1000)] * 58,
    "125 M": transformer(12, 768),
    "350 M": transformer(24, 1024),
    "2,000 tensors of 1,000": [(1000,)] * 2000,
}

# With the bytes that one step must move per float32 parameter; None where it moves many times that.
CONTENDERS: dict[str, tuple[Callable[[Params], torch.optim.Optimizer], int | None]] = {
    "AdamW fused": (lambda ps: torch.optim.AdamW(ps, fused=True), 28),
    "AdamW foreach": (lambda ps: torch.optim.AdamW(ps, foreach=True), None),
    "HATAM fused": (lambda ps: HATAM(ps, fused=True), 28),
    "HATAM fused, bf16 state": (lambda ps: HATAM(ps, fused=True, state_dtype=BF16), 24),
    "HATAM raw fused": (lambda ps: HATAM(ps, form="raw", fused=True), 36),
    "HATAM published fused": (lambda ps: HATAM(ps, form="published", fused=True), 36),
    "HATAM foreach": (lambda ps: HATAM(ps, foreach=True), None),
    "HATAM raw foreach": (lambda ps: HATAM(ps, form="raw", foreach=True), None),
    "HATAM published foreach": (lambda ps: HATAM(ps, form="published", foreach=True), None),
}
REFERENCE = "AdamW fused"


def milliseconds(work: Callable[[], Any], times: int) -> float:
    """Of one of several calls, on the device's clock; what the host needs longer than the device is part of it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    for _ in range(times):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / times


def spread(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "q1": low, "q3": high}


def copy_bandwidth(rounds: int) -> dict[str, Any]:
    """What copying a tensor of 1 GiB reads and writes, in GB/s."""
    source = torch.zeros(2**28, device="cuda")
    target = torch.empty_like(source)
    milliseconds(lambda: target.copy_(source), STEPS)
    times = [milliseconds(lambda: target.copy_(source), STEPS) for _ in range(rounds)]
    return {"part": "copy", "gb_per_s": spread([2 * source.nbytes / t / 1e6 for t in times])}


def memory_of_a_step(optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Bytes of state, which the first step allocates, and of what a later step holds besides."""
    before = torch.cuda.memory_allocated()
    optimizer.step()
    torch.cuda.synchronize()
    settled = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    optimizer.step()
    torch.cuda.synchronize()
    return {"state_bytes": settled - before, "temporary_bytes": torch.cuda.max_memory_allocated() - settled}


def compare(model: str, contender: str, rounds: int) -> dict[str, Any]:
    """One contender's step beside the reference's."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, device="cuda")) for shape in MODELS[model]]
    for p in params:
        p.grad = torch.randn_like(p) * 1e-3
    make, bytes_moved = CONTENDERS[contender]
    optimizer, reference = make(params), CONTENDERS[REFERENCE][0](params)
    memory = memory_of_a_step(optimizer)
    reference.step()
    pairs = []
    for i in range(WARM_UP + rounds):
        turns = [optimizer, reference] if i % 2 else [reference, optimizer]
        took = {id(one): milliseconds(one.step, STEPS) for one in turns}
        pairs.append((took[id(optimizer)], took[id(reference)]))
    pairs = pairs[WARM_UP:]
    count = sum(p.numel() for p in params)
    times = [own for own, _ in pairs]
    return {
        "part": "step",
        "model": model,
        "contender": contender,
        "parameters": count,
        "tensors": len(params),
        "ms": spread(times),
        "ratio_to_adamw_fused": spread([own / other for own, other in pairs]),
        "gb_per_s": spread([bytes_moved * count / t / 1e6 for t in times]) if bytes_moved else None,
        **memory,
    }


def parts(rounds: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """All measurements by name."""
    tasks: dict[str, Callable[[], dict[str, Any]]] = {"copy": lambda: copy_bandwidth(rounds)}
    for model in MODELS:
        for contender in CONTENDERS:
            tasks[f"{model}: {contender}"] = (lambda *of: lambda: compare(*of, rounds))(model, contender)
    return tasks
