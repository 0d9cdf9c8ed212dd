"""What must be right of the GPU kernel, on the device or in Triton's interpreter: gpu_check.py runs it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from common import BF16
from torch import Tensor

from hatam import HATAM, fused
from hatam.fused import cpu, gpu
from hatam.modulators import MODULATORS
from hatam.testing import Reference

LR = 0.01
SHAPES = ((gpu.CHUNK + 1,), (17,), (), (0,))
REACH: dict[str, Any] = {"gamma": 0.5, "travel": 0.0, "horizon": 8.0, "hidden": True}
"""Every tensor reaches, from the first step on at which lr falls."""
WIDE: dict[str, Any] = {"state_dtype": torch.float32}
NARROW: dict[str, Any] = {"state_dtype": BF16}
AT_RANDOM: dict[str, Any] = {"bf16_stochastic_round": True}
# Dtype, options, and how far w may be from the float64 reference, relative to the largest w.
STORAGE: dict[str, tuple[torch.dtype, dict[str, Any], float]] = {
    "float32": (torch.float32, {}, 1e-5),
    "bfloat16, v in float32": (BF16, NARROW | AT_RANDOM, 3e-2),
    "float64": (torch.float64, {}, 1e-12),
    "float32, m in bfloat16": (torch.float32, NARROW, 5e-3),
    "bfloat16": (BF16, {}, 5e-2),
    "bfloat16 at random": (BF16, AT_RANDOM, 5e-2),
    "bfloat16, state in float32": (BF16, WIDE, 3e-2),
    "bfloat16 at random, state in float32": (BF16, WIDE | AT_RANDOM, 3e-2),
}
Params = list[torch.nn.Parameter]
Grads = list[list[Tensor]]
Checks = dict[str, Callable[[], None]]

# Problems -------------------------------------------------------------------------------------------------------------


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
    scales, drifts = ([torch.randn(p.shape, generator=rng) for p in params] for _ in range(2))
    each = [(p, s.exp(), d) for p, s, d in zip(params, scales, drifts, strict=True)]
    return [[(s * (0.3 * d + torch.randn(p.shape, generator=rng))).to(p) for p, s, d in each] for _ in range(steps)]


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


# What must be right ---------------------------------------------------------------------------------------------------


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
        optimizer = HATAM(params, LR, fused=True, modulator=modulator, **NARROW, **REACH)
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


# What it must bear on a device: streams, graphs, scalers, torch.compile -----------------------------------------------


def a_step_waits_for_nothing(device: str, modulator: str) -> None:
    """Neither with new gradients, nor a scaler, nor lr as a tensor, nor many groups; after the first steps."""
    params = parameters(device, torch.float32)
    for lr in (LR, torch.tensor(LR, device=device)):
        optimizer = HATAM([{"params": [p]} for p in params], lr, fused=True, modulator=modulator, **REACH)
        optimizer.grad_scale, optimizer.found_inf = torch.ones((), device=device), torch.zeros((), device=device)
        for i, row in enumerate(gradients(params, 6)):
            for p, g in zip(params, row, strict=True):
                p.grad = g
            torch.cuda.set_sync_debug_mode("error" if i > 1 else "default")
            try:
                optimizer.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")


def a_graph_replays_eager_steps(device: str, modulator: str) -> None:
    """Bit for bit, with lr that changes, of two groups of as many tensors."""
    sides = []
    for _ in range(2):
        params, lr = parameters(device, torch.float32), torch.tensor(LR, device=device)
        half = len(params) // 2
        groups = [{"params": params[:half]}, {"params": params[half : 2 * half]}]
        options = {"fused": True, "capturable": True, "modulator": modulator, **REACH}
        sides.append((HATAM(groups, lr, **options), params[: 2 * half], lr))
        for p in params:
            p.grad = torch.zeros_like(p)
    (optimizer, *_), (plain, *_) = sides
    rows = gradients(sides[0][1], 9)

    def feed(i: int) -> None:
        for _, params, lr in sides:
            lr.fill_(lr_of(i, len(rows)))
            for p, g in zip(params, rows[i], strict=True):
                p.grad.copy_(g)

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for i in range(3):
            feed(i)
            optimizer.step()
            plain.step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    for i in range(3, len(rows)):
        feed(i)
        graph.replay()
        plain.step()
        require(bits(optimizer) == bits(plain), f"the replay of step {i + 1} differs from the eager step")


def a_group_may_lie_on_both(device: str, modulator: str) -> None:
    """Parameters of one group on CPU and GPU: each as if it were alone."""
    ends = []
    for together in (True, False):
        params = [*parameters("cpu", torch.float32), *parameters(device, torch.float32)]
        groups = [params] if together else [params[: len(SHAPES)], params[len(SHAPES) :]]
        rows = [row + [g.to(device) for g in row] for row in gradients(params[: len(SHAPES)], 4)]
        for ps in groups:
            start = 0 if ps[0] is params[0] else len(SHAPES)
            optimizer = HATAM(ps, LR, modulator=modulator, **REACH)
            train(optimizer, ps, [row[start : start + len(ps)] for row in rows])
        ends.append([p.detach().cpu() for p in params])
    require(all(map(torch.equal, *ends)), "a mixed group differs from two groups")


def mixed_precision_trains(device: str, modulator: str) -> None:
    """float16 autocast under a GradScaler, whose first loss scales overflow: it learns, and None and True agree."""
    ends = []
    for use_kernel in (None, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 1)).to(device)
        optimizer = HATAM(model.parameters(), LR, fused=use_kernel, modulator=modulator, **REACH)
        scaler = torch.amp.GradScaler(device, init_scale=2.0**40)
        x = torch.randn(256, 32, device=device)
        y, losses = x[:, :3].sum(1, keepdim=True), []
        for _ in range(120):
            optimizer.zero_grad()
            with torch.autocast(device, torch.float16):
                loss = torch.nn.functional.mse_loss(model(x), y)
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses.append(float(loss))
        steps = float(optimizer.state[model[0].weight]["step"])
        require(0 < steps < 120, f"{steps:g} of 120 steps were taken: the loss scale must overflow at first")
        require(losses[-1] < 0.1 * losses[0], f"the loss went from {losses[0]:.3g} to {losses[-1]:.3g} only")
        ends.append((steps, losses[-1]))
    (steps, loss), (others, other) = ends
    require(steps == others and abs(loss - other) <= 0.1 * loss, f"fused=None and fused=True differ: {ends}")


def a_compiled_step_is_right(device: str, modulator: str) -> None:
    """torch.compile of the step, which is foreach there, against the kernel."""
    params, others = parameters(device, torch.float32), parameters(device, torch.float32)
    lr, other_lr = torch.tensor(LR, device=device), torch.tensor(LR, device=device)
    optimizer = HATAM(params, lr, capturable=True, modulator=modulator, **REACH)
    plain = HATAM(others, other_lr, fused=True, modulator=modulator, **REACH)
    compiled = torch.compile(optimizer.step)
    for i, row in enumerate(gradients(params, 6)):
        for p, q, g in zip(params, others, row, strict=True):
            p.grad, q.grad = g.clone(), g.clone()
        for one in (lr, other_lr):
            one.fill_(lr_of(i, 6))
        compiled()
        plain.step()
    for p, q in zip(params, others, strict=True):
        require(torch.allclose(p, q, rtol=1e-4, atol=1e-5), "the compiled step differs from the kernel")


# All of it ------------------------------------------------------------------------------------------------------------


def checks(device: str) -> Checks:
    """All of them by name; in the interpreter, which is slow, a few of those that need no GPU."""
    on_gpu = device == "cuda"
    modulators = list(MODULATORS) if on_gpu else ["relative"]
    storages, steps = (list(STORAGE), 8) if on_gpu else (list(STORAGE)[:2], 3)
    found: Checks = {
        f"reference: {storage}; {modulator}": partial(agrees_with_the_reference, device, storage, modulator, steps)
        for storage in storages
        for modulator in modulators
    }
    if not cpu.unavailable_reason():
        found |= {f"CPU kernel: {one}": partial(has_the_bits_of_the_cpu_kernel, device, one) for one in storages}
    tests = [skipped_steps_move_nothing, two_runs_are_equal, none_is_the_kernel]
    if on_gpu:
        tests += [a_step_waits_for_nothing, a_graph_replays_eager_steps, a_group_may_lie_on_both]
        tests += [mixed_precision_trains, a_compiled_step_is_right]
    each = {f"{x.__name__.replace('_', ' ')}: {m}": partial(x, device, m) for x in tests for m in modulators}
    return found | each
