"""How long a step takes on a GPU, and what memory: part three of gpu_check.py.

First the step of the optimizer alone, then whole training steps: forward, backward and update.

Every contender is paired with torch's fused AdamW on the same parameters and gradients: they take turns, so that a slow
moment harms both alike, and a ratio is that of the two turns of one round. Only these two hold state at a time.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable
from typing import Any

import models
import torch
from torch import Tensor

Params = list[torch.nn.Parameter]
Shapes = list[tuple[int, ...]]

STEPS = 10  # of one turn
WARM_UP = 3  # turns
SECONDS = 8  # of one comparison, after which there are no more rounds than the least
LEAST = 5
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
    "HATAM fused": (lambda ps: models.reaching(ps, fused=True), 28),
    "HATAM fused, relative": (lambda ps: models.reaching(ps, fused=True, modulator="relative"), 28),
    "HATAM fused, bf16 state": (lambda ps: models.reaching(ps, fused=True, state_dtype=BF16), 24),
    "HATAM foreach": (lambda ps: models.reaching(ps, foreach=True), None),
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


def in_turns(work: Callable[[], Any], reference: Callable[[], Any], rounds: int) -> list[tuple[float, float]]:
    """Milliseconds of both, in pairs; neither always comes after the other."""
    pairs, spent = [], 0.0
    for i in range(WARM_UP + rounds):
        took = {one: milliseconds(one, STEPS) for one in ((work, reference) if i % 2 else (reference, work))}
        pairs.append((took[work], took[reference]))
        spent += STEPS * sum(took.values()) / 1000
        if spent > SECONDS and len(pairs) >= WARM_UP + LEAST:
            break
    return pairs[WARM_UP:]


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
    pairs = in_turns(optimizer.step, reference.step, rounds)
    count = sum(p.numel() for p in params)
    times = [own for own, _ in pairs]
    return {
        "part": "step",
        "model": model,
        "contender": contender,
        "parameters": count,
        "tensors": len(params),
        "n": len(pairs),
        "ms": spread(times),
        "ratio_to_adamw_fused": spread([own / other for own, other in pairs]),
        "gb_per_s": spread([bytes_moved * count / t / 1e6 for t in times]) if bytes_moved else None,
        **memory,
    }


TRAINED: dict[str, tuple[Callable[[], torch.nn.Module], tuple[int, ...]]] = {
    "transformer, 3 M, batch 32 x 64": (lambda: models.Transformer(256, 4), (32, 64)),
    "transformer, 86 M, batch 8 x 512": (lambda: models.Transformer(768, 12, 12, 512), (8, 512)),
    "conv net, 0.2 M, batch 128": (models.conv_net, (128, 3, 32, 32)),
}


def train(name: str, rounds: int) -> dict[str, Any]:
    """A training step in bfloat16 autocast with HATAM in mid-schedule beside one with torch's fused AdamW."""
    make_model, shape = TRAINED[name]
    turns = []
    for make in (CONTENDERS[REFERENCE][0], models.reaching):
        torch.manual_seed(0)
        model = make_model().cuda()
        text = len(shape) == 2
        x = torch.randint(256, shape, device="cuda") if text else torch.randn(shape, device="cuda")
        y = torch.randint(256, shape, device="cuda") if text else torch.randint(10, shape[:1], device="cuda")
        turns.append(training_step(model, make(list(model.parameters())), x, y))
    pairs = in_turns(turns[1], turns[0], rounds)
    return {
        "part": "training",
        "model": name,
        "n": len(pairs),
        "ms": spread([own for own, _ in pairs]),
        "adamw_ms": spread([other for _, other in pairs]),
        "ratio_to_adamw_fused": spread([own / other for own, other in pairs]),
    }


def training_step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> Callable[[], None]:
    """What is timed."""

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()

    return step


def parts(rounds: int) -> dict[str, Callable[[], dict[str, Any]]]:
    """All measurements by name."""
    tasks: dict[str, Callable[[], dict[str, Any]]] = {"copy": lambda: copy_bandwidth(rounds)}
    for model in MODELS:
        for contender in CONTENDERS:
            tasks[f"{model}: {contender}"] = (lambda *of: lambda: compare(*of, rounds))(model, contender)
    for name in TRAINED:
        tasks[f"training: {name}"] = (lambda of: lambda: train(of, rounds))(name)
    return tasks
