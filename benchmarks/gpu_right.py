"""What must be right of the GPU kernel, on the device or in Triton's interpreter: part one of gpu_check.py."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hatam import HATAM, fused
from hatam.fused import cpu, gpu
from hatam.modulators import MODULATORS
from hatam.testing import Reference

BF16 = torch.bfloat16
LR = 0.01
SHAPES = ((gpu.CHUNK + 1,), (17,), (), (0,))
REACH: dict[str, Any] = {"gamma": 0.5, "travel": 0.0, "horizon": 8.0, "hidden": True}
"""Every tensor reaches, from the first step on at which lr falls."""
# Dtype, options, and how far w may be from the float64 reference, relative to the largest w.
STORAGE: dict[str, tuple[torch.dtype, dict[str, Any], float]] = {
    "float32": (torch.float32, {}, 1e-5),
    "bfloat16, v in float32": (BF16, {"state_dtype": BF16, "bf16_stochastic_round": True}, 3e-2),
    "float64": (torch.float64, {}, 1e-12),
    "float32, m in bfloat16": (torch.float32, {"state_dtype": BF16}, 5e-3),
    "bfloat16": (BF16, {}, 5e-2),
    "bfloat16 at random": (BF16, {"bf16_stochastic_round": True}, 5e-2),
    "bfloat16, state in float32": (BF16, {"state_dtype": torch.float32}, 3e-2),
    "bfloat16 at random, state in float32": (
        BF16,
        {"state_dtype": torch.float32, "bf16_stochastic_round": True},
        3e-2,
    ),
}
Params = list[torch.nn.Parameter]
Grads = list[list[Tensor]]

# Problems -----------------------------------------------------------------------------------------------------------


def shapes_for(device: str) -> tuple[tuple[int, ...], ...]:
    """All of them on a GPU; in the interpreter, which is slow, the one of two chunks."""
    return SHAPES if device == "cuda" else SHAPES[:1]


def parameters(device: str, dtype: torch.dtype, shapes: Iterable[tuple[int, ...]] = SHAPES) -> Params:
    """Normal entries, the same on every device."""
    rng = torch.Generator().manual_seed(0)
    values = [torch.randn(shape, generator=rng, dtype=torch.float64) for shape in shapes]
    return [torch.nn.Parameter(x.to(dtype).to(device)) for x in values]


def gradients(params: Params, steps: int) -> Grads:
    """A drift plus noise, at a scale of its own in every coordinate."""
    rng = torch.Generator().manual_seed(1)
    scales = [torch.randn(p.shape, generator=rng).exp() for p in params]
    drifts = [torch.randn(p.shape, generator=rng) for p in params]
    return [
        [
            (s * (0.3 * d + torch.randn(p.shape, generator=rng))).to(p.dtype).to(p.device)
            for p, s, d in zip(params, scales, drifts, strict=True)
        ]
        for _ in range(steps)
    ]


def lr_of(step: int, steps: int) -> float:
    """A warm-up of two steps, then half a cosine down to 0."""
    return LR * min((step + 1) / 2, 0.5 * (1 + math.cos(math.pi * (step + 1) / steps)))


def train(optimizer: torch.optim.Optimizer, params: Params, grads: Grads) -> None:
    """One step for every list of gradients."""
    for i, row in enumerate(grads):
        optimizer.param_groups[0]["lr"] = lr_of(i, len(grads))
        for p, g in zip(params, row, strict=True):
            p.grad = g.clone()
        optimizer.step()


def bits(optimizer: torch.optim.Optimizer) -> list[bytes]:
    """All that a step may move."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    moved = [*params, *(x for p in params for x in optimizer.state[p].values())]
    return [x.detach().reshape(-1).view(torch.uint8).cpu().numpy().tobytes() for x in moved if x.numel()]


def require(condition: bool, what: str) -> None:
    """A check that -O leaves in."""
    if not condition:
        raise ArithmeticError(what)


# What must be right -------------------------------------------------------------------------------------------------


def agrees_with_the_reference(device: str, storage: str, modulator: str, steps: int) -> None:
    """In every combination of dtypes and modulator."""
    dtype, options, tolerance = STORAGE[storage]
    params = parameters(device, dtype, shapes_for(device))
    oracles = [Reference(p.cpu(), modulator=modulator, **REACH) for p in params]
    grads = gradients(params, steps)
    train(HATAM(params, LR, fused=True, modulator=modulator, **options, **REACH), params, grads)
    for i, row in enumerate(grads):
        for oracle, g in zip(oracles, row, strict=True):
            oracle.step(g.cpu(), lr_of(i, steps))
    for p, oracle in zip(params, oracles, strict=True):
        if p.numel():
            error = float((p.detach().cpu().double() - oracle.w).abs().max() / oracle.w.abs().max())
            require(error <= tolerance, f"{error:.2g} from the reference, more than {tolerance:g}")


def has_the_bits_of_the_cpu_kernel(device: str, storage: str) -> None:
    """m and v, stochastic rounding included, where the CPU kernel was built."""
    dtype, options, _ = STORAGE[storage]
    ones = []
    for where, kernel in (("cpu", cpu), (device, gpu)):
        fused.KERNELS[where] = kernel
        params = parameters(where, dtype, shapes_for(device))
        optimizer = HATAM(params, LR, fused=True, **options, **REACH)
        train(optimizer, params, gradients(params, 4))
        ones.append([optimizer.state[p][key].cpu() for p in params for key in ("exp_avg", "exp_avg_sq")])
    require(all(torch.equal(x, y) for x, y in zip(*ones, strict=True)), "m or v differ from the CPU kernel's")


def skipped_steps_move_nothing(device: str, modulator: str) -> None:
    """found_inf = 1: nothing moves, the largest lr neither. found_inf = 0: the step with a loss scale of 1."""
    params, others = (parameters(device, torch.float32, shapes_for(device)) for _ in range(2))
    optimizer, plain = (HATAM(ps, LR, fused=True, modulator=modulator, **REACH) for ps in (params, others))
    for i, row in enumerate(gradients(params, 5)):
        optimizer.grad_scale, plain.grad_scale = (torch.tensor(scale, device=device) for scale in (4.0, 1.0))
        optimizer.found_inf = torch.tensor(float(i in (1, 3)), device=device)
        plain.found_inf = torch.zeros((), device=device)
        for p, q, g in zip(params, others, row, strict=True):
            p.grad, q.grad = 4 * g, g.clone()
        before = bits(optimizer) if i else []
        optimizer.param_groups[0]["lr"] = 10 * LR if i in (1, 3) else LR
        optimizer.step()
        if i in (1, 3):
            require(bits(optimizer) == before, "a skipped step has moved something")
        else:
            plain.step()
        require(bits(optimizer) == bits(plain), "a loss scale changes the step")
    require(float(optimizer.param_groups[0]["lr_peak"]) == LR, "a skipped step has raised the largest lr")


def two_runs_are_equal(device: str, modulator: str) -> None:
    """Bit for bit."""
    shapes = [(1000, 1237), (50_000,), (33,)] if device == "cuda" else [(3000,)]
    runs = []
    for _ in range(2):
        params = parameters(device, torch.float32, shapes)
        optimizer = HATAM(params, LR, fused=True, state_dtype=BF16, modulator=modulator, **REACH)
        train(optimizer, params, gradients(params, 5))
        runs.append(bits(optimizer))
    require(runs[0] == runs[1], "two runs differ")


def none_is_the_kernel(device: str, modulator: str) -> None:
    """Where there is a reach, fused=None on what AdamW's foreach path left behind has the bits of fused=True."""
    ends = []
    for use_kernel in (None, True):
        params = parameters(device, torch.float32, shapes_for(device))
        first = torch.optim.AdamW(params, LR)  # foreach on a GPU
        rows = gradients(params, 6)
        train(first, params, rows[:2])
        optimizer = HATAM(params, LR, fused=use_kernel, modulator=modulator, **REACH)
        optimizer.load_state_dict(first.state_dict())
        optimizer.param_groups[0].update(lr_peak=2 * LR, fused=use_kernel)
        train(optimizer, params, rows[2:])
        ends.append(bits(optimizer))
    require(ends[0] == ends[1], "fused=None and fused=True differ")


# All of it ------------------------------------------------------------------------------------------------------------


def checks(device: str) -> dict[str, Callable[[], None]]:
    """All of them by name; in the interpreter, which is slow, a few of those that need no GPU."""
    on_gpu = device == "cuda"
    storages, steps = (list(STORAGE), 8) if on_gpu else (list(STORAGE)[:2], 3)
    modulators = list(MODULATORS) if on_gpu else ["relative"]
    tests: dict[str, Callable[[], None]] = {}
    for storage in storages:
        for modulator in modulators:
            tests[f"reference: {storage}; {modulator}"] = partial(
                agrees_with_the_reference, device, storage, modulator, steps
            )
        if not cpu.unavailable_reason():
            tests[f"CPU kernel: {storage}"] = partial(has_the_bits_of_the_cpu_kernel, device, storage)
    for test in (skipped_steps_move_nothing, two_runs_are_equal, none_is_the_kernel):
        tests |= with_modulators(test, device, modulators)
    return tests


def with_modulators(
    test: Callable[[str, str], None], device: str, modulators: Iterable[str] = MODULATORS
) -> dict[str, Callable[[], None]]:
    """A test by name, once for each modulator."""
    name = test.__name__.replace("_", " ")
    return {f"{name}: {one}": partial(test, device, one) for one in modulators}
