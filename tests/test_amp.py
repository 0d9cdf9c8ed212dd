"""Mixed precision: what a GradScaler skips moves nothing, on every path; autocast, clipping and accumulation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from conftest import VARIANTS, Falling, bits, equal, gradients, parameters, state_bits, twins
from torch import nn

from hatam import HATAM

PATHS: dict[str, dict[str, Any]] = {
    "single": {"foreach": False, "fused": False},
    "foreach": {"foreach": True},
    "default": {},
    "fused": {"fused": True},
    "m in bfloat16": {"state_dtype": torch.bfloat16},
    "8bit": {"state_dtype": "8bit"},
}
EVERY = {f"{name}-{path}": {**options, **flags} for name, options in VARIANTS.items() for path, flags in PATHS.items()}


@pytest.mark.compatible("GradScaler", "a skipped step moves nothing, on every path and state dtype")
@pytest.mark.parametrize("options", EVERY.values(), ids=EVERY.keys())
def test_a_step_that_gradscaler_skips_moves_nothing(options: dict[str, Any]) -> None:
    """Nor state: no count, no moment, no ratio, no reach, no peak. The others are steps without a scaler."""
    params = parameters(((64, 64), (7,)))
    others = twins(params)
    optimizer, plain = Falling(params, 0.01, **options), Falling(others, 0.01, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for i, row in enumerate(gradients(params, 6)):
        bad = i in (0, 3)
        optimizer.param_groups[0]["lr"] = 1.0 if bad else 0.01  # which the peak must not hear of
        w, state, groups = [bits(p) for p in params], state_bits(optimizer), repr(optimizer.param_groups)
        scale = scaler.scale(torch.ones(())).item()
        for p, q, g in zip(params, others, row, strict=True):
            p.grad, q.grad = g * scale, g.clone()
        if bad:
            params[1].grad[2] = math.inf
        scaler.step(optimizer)
        scaler.update()
        if not bad:
            plain.step()
        elif i == 0:  # state may have been made, but holds nothing
            assert [bits(p) for p in params] == w
            assert all(state["step"] == 0 for state in optimizer.state.values())
        else:
            assert ([bits(p) for p in params], state_bits(optimizer)) == (w, state)
            assert repr(optimizer.param_groups) == groups
    assert equal(params, others)
    assert state_bits(optimizer) == state_bits(plain)
    assert optimizer.param_groups[0]["lr_peak"] == plain.param_groups[0]["lr_peak"]


@pytest.mark.compatible("autocast", "bfloat16, with clipping and accumulation")
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_autocast_with_clipping_and_accumulation(options: dict[str, Any]) -> None:
    """bfloat16 autocast, four micro-batches a step, clipped: it learns, as the same batches at once do."""
    ends = []
    for portions in (1, 4):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 1))
        optimizer = HATAM(model.parameters(), 0.01, **options)
        x = torch.randn(64, 8)
        y, losses = x[:, :2].sum(1, keepdim=True), []
        for _ in range(60):
            optimizer.zero_grad()
            loss = torch.zeros(())
            for xs, ys in zip(x.chunk(portions), y.chunk(portions), strict=True):
                with torch.autocast("cpu", torch.bfloat16):
                    part = nn.functional.mse_loss(model(xs).float(), ys) / portions
                part.backward()
                loss += part.detach()
            norm = nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            losses.append(loss.item())
        assert norm.isfinite()
        assert all(p.dtype == torch.float32 for p in model.parameters())
        ends.append(losses)
    assert all(losses[-1] < 0.2 * losses[0] for losses in ends)
    assert ends[1][:20] == pytest.approx(ends[0][:20], rel=0.1)
