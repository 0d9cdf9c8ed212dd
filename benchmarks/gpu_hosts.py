"""What the GPU kernel must bear on a device: streams, graphs, scalers, torch.compile; part two of gpu_check.py."""

from __future__ import annotations

from collections.abc import Callable

import torch
from gpu_right import LR, REACH, SHAPES, bits, gradients, lr_of, parameters, require, train, with_modulators

from hatam import HATAM


def a_step_waits_for_nothing(device: str, modulator: str) -> None:
    """Neither with new gradients, nor a scaler, nor lr as a tensor, nor many groups; after the first steps."""
    params = parameters(device, torch.float32)
    for lr in (LR, torch.tensor(LR, device=device)):
        optimizer = HATAM([{"params": [p]} for p in params], lr, fused=True, modulator=modulator, **REACH)
        optimizer.grad_scale, optimizer.found_inf = torch.ones((), device=device), torch.zeros((), device=device)
        rows = gradients(params, 6)
        for i, row in enumerate(rows):
            for p, g in zip(params, row, strict=True):
                p.grad = g
            torch.cuda.set_sync_debug_mode("error" if i > 1 else "default")
            try:
                optimizer.step()
            finally:
                torch.cuda.set_sync_debug_mode("default")


def a_graph_replays_eager_steps(device: str, modulator: str) -> None:
    """Bit for bit, with lr that changes, of two groups of as many tensors."""
    params, others = parameters(device, torch.float32), parameters(device, torch.float32)
    lr, other_lr = torch.tensor(LR, device=device), torch.tensor(LR, device=device)
    half = len(params) // 2
    params, others = params[: 2 * half], others[: 2 * half]
    optimizer, plain = (
        HATAM(
            [{"params": ps[:half]}, {"params": ps[half:]}],
            rate,
            fused=True,
            capturable=True,
            modulator=modulator,
            **REACH,
        )
        for ps, rate in ((params, lr), (others, other_lr))
    )
    rows = gradients(params, 9)
    for p, q in zip(params, others, strict=True):
        p.grad, q.grad = torch.zeros_like(p), torch.zeros_like(q)

    def feed(i: int) -> None:
        for x, ps in ((lr, params), (other_lr, others)):
            x.fill_(lr_of(i, len(rows)))
            for p, g in zip(ps, rows[i], strict=True):
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
        optimizers = [HATAM(ps, LR, modulator=modulator, **REACH) for ps in groups]
        rows = gradients(params[: len(SHAPES)], 4)
        rows = [row + [g.to(device) for g in row] for row in rows]
        for optimizer, ps in zip(optimizers, groups, strict=True):
            start = 0 if ps[0] is params[0] else len(SHAPES)
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


def checks() -> dict[str, Callable[[], None]]:
    """All of them by name."""
    tests = [a_step_waits_for_nothing, a_graph_replays_eager_steps, a_group_may_lie_on_both]
    tests += [mixed_precision_trains, a_compiled_step_is_right]
    return {name: one for test in tests for name, one in with_modulators(test, "cuda").items()}
