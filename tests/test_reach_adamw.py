"""AdamW with the late reach: its float64 reference, AdamW as its limit, and what a host asks of an optimizer."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from prescribed import SHAPE, cosine, published, start, step
from torch import Tensor, nn

from hatam import theory
from hatam.reach_adamw import OWN_STATE, ReachAdamW
from hatam.testing import ReachReference

STEPS = 200


def gradients(steps: int, dtype: torch.dtype = torch.float64) -> Iterator[Tensor]:
    """Noise on scales from 0.01 to 1 with a slight drift."""
    generator = torch.Generator().manual_seed(1)
    scales = torch.logspace(-2, 0, SHAPE[0], dtype=torch.float64)[:, None]
    for _ in range(steps):
        yield (scales * (0.1 + torch.randn(SHAPE, generator=generator, dtype=torch.float64))).to(dtype)


VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "far": {"gamma": 1.0, "travel": 2.0, "horizon": 1.0, "fade": 1.0},
    "at-once": {"travel": 0.0, "horizon": 4.0},
    "not-hidden": {"hidden": False},
    "other-betas": {"betas": (0.5, 0.999), "weight_decay": 0.3},
}


def reference_of(p: Tensor, options: dict[str, Any]) -> ReachReference:
    beta1, beta2 = options.get("betas", (0.9, 0.95))
    return ReachReference(p, beta1, beta2, **{k: v for k, v in options.items() if k != "betas"})


@pytest.mark.parametrize("fused", [False, True], ids=["foreach", "fused"])
@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-4)], ids=["f64", "f32"])
def test_it_is_the_reference(options: dict[str, Any], dtype: torch.dtype, tolerance: float, fused: bool) -> None:
    p = start(dtype)
    reference, optimizer = reference_of(p, options), ReachAdamW([p], **options, fused=fused)
    limits = set()
    for t, g in enumerate(gradients(STEPS, dtype), 1):
        lr = 0.1 * cosine(t, STEPS)
        step(optimizer, p, g, lr)
        reference.step(g, lr)
        assert (p - reference.w).abs().max() < tolerance
        assert (published(optimizer, p) - reference.z).abs().max() < tolerance
        limits.add(reference.reach(lr) == reference.horizon * reference.peak)
    assert torch.equal(p, published(optimizer, p)), "where lr ends at 0, w is z"
    assert reference.way > 1, "z has to come so far that there is a reach"
    if "horizon" in options:
        assert limits == {False, True}, "both lengths have to limit the reach"


@pytest.mark.parametrize("fused", [False, True], ids=["foreach", "fused"])
def test_at_the_peak_and_without_reach_it_is_adamw_to_the_last_bit(fused: bool) -> None:
    rising, level, falling = (lambda t: t / STEPS), (lambda t: 1.0), (lambda t: 1 - t / STEPS)
    for options, schedule in (({}, rising), ({}, level), ({"gamma": 0.0}, falling)):
        p, q = start(torch.float32), start(torch.float32)
        ours = ReachAdamW([p], betas=(0.9, 0.95), **options, fused=fused)
        theirs = torch.optim.AdamW([q], betas=(0.9, 0.95), fused=fused)
        for t, g in enumerate(gradients(STEPS, torch.float32)):
            step(ours, p, g, 0.02 * schedule(t))
            step(theirs, q, g.clone(), 0.02 * schedule(t))
            assert torch.equal(p, q)


def test_z_takes_adamws_steps_on_the_gradients_of_w() -> None:
    p, q = start(), start()
    ours, theirs = ReachAdamW([p], gamma=1.0, travel=0.0, horizon=math.inf), torch.optim.AdamW([q], betas=(0.9, 0.95))
    apart = 0.0
    for t, g in enumerate(gradients(STEPS), 1):
        step(ours, p, g, 0.02 * cosine(t, STEPS))
        step(theirs, q, g.clone(), 0.02 * cosine(t, STEPS))
        assert (published(ours, p) - q).abs().max() < 1e-12
        apart = max(apart, float((p - q).detach().square().mean().sqrt() / q.detach().square().mean().sqrt()))
    assert 0.1 < apart < 1, "w is ahead of z by a share of its size"


def test_the_reach_waits_until_z_has_come_far() -> None:
    """It is ((N - 1) / travel)² of what it would be at once, and N is the path of z in sizes of z."""
    p, q = start(), start()
    whole, waiting = (
        ReachAdamW([each], travel=travel, horizon=math.inf, weight_decay=0.0) for each, travel in ((p, 0.0), (q, 4.0))
    )
    path, last, found = 0.0, q.detach().clone(), 0.0
    for t, g in enumerate(gradients(STEPS // 2), 1):
        for optimizer, each in ((whole, p), (waiting, q)):
            step(optimizer, each, g.clone(), 0.1 * cosine(t, STEPS))
        assert torch.equal(q, published(waiting, q)) == (found <= 1)
        found, z = float(waiting.state[q].get("travel", 0.0)), published(waiting, q)
        path, last = path + float((z - last).norm() / z.norm()), z
        if t == 98:
            before = found
        if t == 99:
            kappas = [float(each.state[w]["reach"]) for each, w in ((whole, p), (waiting, q))]
            assert kappas[1] == pytest.approx(kappas[0] * ((before - 1) / 4) ** 2, rel=1e-4)
    assert found == pytest.approx(path, rel=0.1)
    assert 1.5 < found < 5


@pytest.mark.parametrize("beta1", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("kappa", [0.0, 0.003, 0.1])
def test_the_ceiling_on_sharpness_is_where_the_theory_says(beta1: float, kappa: float) -> None:
    """z and m of a quadratic with h = 1 grow on one side of it, and shrink on the other."""
    lr = 0.01
    for factor in (0.98, 1.02):
        curvature = factor * theory.reach_ceiling(lr, beta1, kappa)
        z, m = torch.tensor(1.0, dtype=torch.float64), torch.tensor(0.0, dtype=torch.float64)
        for _ in range(3000):
            m = beta1 * m + (1 - beta1) * curvature * (z - kappa * m)
            z = z - lr * m
        assert (abs(z) > 1e3) == (factor > 1)


def test_only_hidden_weights_have_a_reach() -> None:
    model = nn.ModuleDict({"tokens": nn.Embedding(4, 3), "linear": nn.Linear(3, 2)})
    optimizer = ReachAdamW(model.named_parameters())
    for lr in (0.01, 0.005):
        for p in model.parameters():
            p.grad = torch.randn_like(p, generator=torch.Generator().manual_seed(0))
        optimizer.param_groups[0]["lr"] = lr
        optimizer.step()
    assert [name for name, p in model.named_parameters() if "reach" in optimizer.state[p]] == ["linear.weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("evaluating", [False, True])
def test_a_resumed_run_goes_on_to_the_last_bit(dtype: torch.dtype, evaluating: bool) -> None:
    p = start(dtype)
    optimizer = ReachAdamW([p], travel=0.0)
    found = list(gradients(100, dtype))
    for t, g in enumerate(found[:60], 1):
        step(optimizer, p, g, 0.02 * cosine(t, 100))
    if evaluating:
        optimizer.eval()
    q = nn.Parameter(p.detach().clone())
    resumed = ReachAdamW([q])
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert {resumed.state[q][key].dtype for key in OWN_STATE} == {torch.float32}
    if evaluating:
        with pytest.raises(RuntimeError, match=r"call optimizer\.train\(\) first"):
            resumed.step()
        optimizer.train()
        resumed.train()
    for t, g in enumerate(found[60:], 61):
        for each, weights in ((optimizer, p), (resumed, q)):
            step(each, weights, g.clone(), 0.02 * cosine(t, 100))
        assert torch.equal(p, q)


def test_a_checkpoint_of_adamw_goes_on() -> None:
    p, found = start(), list(gradients(100))
    adamw = torch.optim.AdamW([p], betas=(0.9, 0.95), weight_decay=0.2)
    for g in found[:50]:
        step(adamw, p, g, 0.02)
    optimizer = ReachAdamW([p])
    optimizer.load_state_dict(adamw.state_dict())
    assert optimizer.param_groups[0]["weight_decay"] == 0.2
    assert optimizer.param_groups[0]["gamma"] == 0.2
    for t, g in enumerate(found[50:], 51):
        step(optimizer, p, g, 0.02 * cosine(t, 100))
    assert torch.equal(p, published(optimizer, p))


def test_evaluation_gives_z_and_leads_back() -> None:
    p = start()
    optimizer = ReachAdamW([p], gamma=1.0, travel=0.0, horizon=math.inf)
    for t, g in enumerate(gradients(60), 1):
        step(optimizer, p, g, 0.02 * cosine(t, 100))
    w, z = p.detach().clone(), published(optimizer, p)
    assert torch.equal(w, p)
    assert not torch.equal(w, z)
    optimizer.eval()
    assert torch.equal(p, z)
    optimizer.train()
    torch.testing.assert_close(p.detach(), w, rtol=0, atol=1e-14)


def test_a_refused_step_moves_nothing() -> None:
    p, q = start(), nn.Parameter(torch.ones(3, 2))
    optimizer = ReachAdamW([p, q])
    before = p.detach().clone()
    p.grad, q.grad = torch.ones_like(p), torch.ones(3, 2).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert torch.equal(p, before)
    assert not optimizer.state[p]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gamma": -1.0}, "gamma"),
        ({"fade": 0.0}, "fade"),
        ({"horizon": -1.0}, "horizon"),
        ({"travel": -1.0}, "travel"),
        ({"hidden": "yes"}, "hidden"),
        ({"lr": -1.0}, "lr"),
        ({"betas": (1.0, 0.9)}, "beta"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        ReachAdamW([start()], **options)
