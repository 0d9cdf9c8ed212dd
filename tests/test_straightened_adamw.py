"""The straightened form against its float64 reference, its limits, and what a host asks of an optimizer."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from prescribed import SHAPE, cosine, published, start, step
from schedulefree import AdamWScheduleFree
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from hatam import straighten, theory
from hatam.straightened_adamw import StraightenedAdamW
from hatam.testing import StraightenedReference


def gradients(steps: int, dtype: torch.dtype = torch.float64) -> Iterator[Tensor]:
    """Prescribed ones, on several scales: rows from 0.01 to 1, with a drift."""
    generator = torch.Generator().manual_seed(1)
    scales = torch.logspace(-2, 0, SHAPE[0], dtype=torch.float64)[:, None]
    for _ in range(steps):
        yield (scales * (0.3 + torch.randn(SHAPE, generator=generator, dtype=torch.float64))).to(dtype)


VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "relative": {"modulator": "relative"},
    "no-reach": {"gamma": 0.0},
    "not-hidden": {"hidden": False},
    "growing": {"memory": None, "averaging": 8.0},
    "flat-average": {"averaging": 0.0, "memory": None, "betas": (0.5, 0.999)},
    "no-decay": {"weight_decay": 0.0, "fade": 1.0},
}
every_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())


def reference_of(p: Tensor, options: dict[str, Any]) -> StraightenedReference:
    beta1, beta2 = options.get("betas", (0.9, 0.95))
    return StraightenedReference(p, beta1, beta2, **{k: v for k, v in options.items() if k != "betas"})


@every_variant
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-3)], ids=["f64", "f32"])
def test_it_is_the_reference(options: dict[str, Any], dtype: torch.dtype, tolerance: float) -> None:
    """A tolerance above rounding: the lead of the first steps is a small difference of large numbers."""
    p = start(dtype)
    reference, optimizer = reference_of(p, options), StraightenedAdamW([p], **options)
    for t, g in enumerate(gradients(200, dtype), 1):
        lr = 0.02 * cosine(t, 200)
        step(optimizer, p, g, lr)
        reference.step(g, lr)
        assert (p - reference.w).abs().max() < tolerance
        assert (published(optimizer, p) - reference.x).abs().max() < tolerance
    assert torch.equal(p, published(optimizer, p)), "where lr ends at 0, w is x"


def test_without_reach_and_with_a_flat_average_it_is_schedule_free() -> None:
    """Against the package; its warm-up is written out as a schedule of lr."""
    p, q = start(), start()
    ours = StraightenedAdamW([p], lr=0.01, betas=(0.9, 0.95), gamma=0.0, averaging=0.0, memory=None, weight_decay=0.1)
    theirs = AdamWScheduleFree([q], lr=0.01, betas=(0.9, 0.95), warmup_steps=20, weight_decay=0.1, foreach=False)
    theirs.train()
    for t, g in enumerate(gradients(300), 1):
        step(ours, p, g, 0.01 * min(1.0, t / 20))
        step(theirs, q, g.clone())
        assert (p - q).abs().max() < 1e-12
    theirs.eval()
    assert (published(ours, p) - q).abs().max() < 1e-12


def test_without_an_interpolation_it_is_adam_under_a_weighted_average() -> None:
    """β1 = 0: the gradient is taken at z, which torch's AdamW without momentum moves; x weighs step t by t^r."""
    p, q = start(), start()
    ours = StraightenedAdamW([p], lr=0.01, betas=(0.0, 0.95), gamma=0.0, averaging=3.0, memory=None, weight_decay=0.1)
    theirs = torch.optim.AdamW([q], lr=0.01, betas=(0.0, 0.95), weight_decay=0.1)
    total, weights = torch.zeros_like(q), 0
    for t, g in enumerate(gradients(100), 1):
        step(ours, p, g)
        step(theirs, q, g)
        total, weights = total + t**3 * q.detach(), weights + t**3
        assert (p - q).abs().max() < 1e-12
        assert (published(ours, p) - total / weights).abs().max() < 1e-12


def test_a_fixed_memory_is_momentum() -> None:
    """x moves by lr times the average of g / h, as in an Adam that averages after it divides."""
    p = start()
    optimizer = StraightenedAdamW([p], lr=0.01, gamma=0.0, memory=10.0, weight_decay=0.0)
    v, s, x = torch.zeros_like(p), torch.zeros_like(p), None
    for t, g in enumerate(gradients(250), 1):
        step(optimizer, p, g)
        v = 0.95 * v + 0.05 * g**2
        s = 0.9 * s + 0.1 * g / ((v / (1 - 0.95**t)).sqrt() + 1e-8)
        new = published(optimizer, p)
        if x is not None and t > 240:  # the first steps, in which the memory is shorter, are forgotten
            assert (new - (x - 0.01 * s)).abs().max() < 1e-6
        x = new


def test_the_probe_moves_by_the_averaged_step_corrected_by_the_bend() -> None:
    """With a fixed memory: Δw = −lr (s + K (u − s)), s the average of u = g / h, and u − s = (τ − 1) c, c the EMA of
    u_t − u_{t−1}."""
    tau, k = 10.0, 0.1
    p = start()
    optimizer = StraightenedAdamW([p], lr=0.01, betas=(1 - k, 0.95), gamma=0.0, memory=tau, weight_decay=0.0)
    reference = StraightenedReference(p, 1 - k, 0.95, gamma=0.0, memory=tau, weight_decay=0.0)
    c, before, u_before = None, None, None
    for g in gradients(200):
        step(optimizer, p, g)
        reference.step(g, 0.01)
        h = (reference.v / (1 - 0.95**reference.t)).sqrt() + 1e-8
        u, lead = g / h, reference.z - reference.x
        s = -lead / (0.01 * (tau - 1))  # D = −lr (τ − 1) s
        if before is not None and c is not None:
            c = c + ((u - u_before) - c) / tau
            assert (p.detach() - before + 0.01 * (s + k * (u - s))).abs().max() < 1e-12
            assert (u - s - (tau - 1) * c).abs().max() < 1e-9
        elif reference.t > tau:  # from here on the memory is τ: before it is t
            c = (u - s) / (tau - 1)
        before, u_before = p.detach().clone(), u


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_average_is_not_lost_to_rounding(dtype: torch.dtype) -> None:
    """x is what is left of w, step after step: three roundings a step, each at most half a unit in the last place."""
    p = nn.Parameter(torch.ones(8, 8, dtype=dtype))
    optimizer = StraightenedAdamW([p], weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    exact, steps = p.detach().double(), 10_000 if dtype == torch.float32 else 1000
    for t in range(1, steps + 1):
        step(optimizer, p, torch.randn(8, 8, generator=generator).to(dtype), 1e-3 if t < 100 else 5e-4)
        state, group = optimizer.state[p], optimizer.param_groups[0]
        weight = group["lr_peak"] ** 2 * t ** group["averaging"]
        a = straighten.share(weight, group["weight_sum"], group["lr"], group["lr_peak"], group["memory"])
        exact = published(optimizer, p).double() if t == 1 else exact + a / (1 - a) * state["lead"].double()
    assert state["kappa"] > 0.2, "there is a reach"
    drift = (published(optimizer, p).double() - exact).abs().max()
    unit = torch.finfo(dtype).eps * float(exact.abs().max())
    assert drift < 1.5 * steps * unit
    assert drift < 4 * math.sqrt(3 * steps) * unit, "and they do not add up in one direction"


@pytest.mark.parametrize(("share", "kappa"), [(0.1, 0.1), (0.1, 1.0), (0.01, 0.3), (0.1, 0.0)])
def test_the_ceiling_on_sharpness(share: float, kappa: float) -> None:
    """On L = λ w² / 2 with h held at 1, training is stable just below the ceiling and not just above it."""
    for factor, stable in ((0.99, True), (1.01, False)):
        curvature = factor * theory.straightened_ceiling(share, kappa)
        x, lead = 1.0, 0.0
        for _ in range(3000):
            fast = lead - curvature * (x + kappa * lead)
            x, lead = x + share * fast, (1 - share) * fast
            if abs(x) > 1e3:
                break
        assert (abs(x) < 1.0) == stable


def trained(optimizer: torch.optim.Optimizer, p: Tensor, first: int, last: int) -> None:
    for t, g in enumerate(gradients(last, p.dtype), 1):
        if t > first:
            step(optimizer, p, g, 0.02 * cosine(t, 60))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("evaluating", [False, True], ids=["train", "eval"])
def test_a_resumed_run_is_the_uninterrupted_one(evaluating: bool, dtype: torch.dtype) -> None:
    p, q, r = start(dtype), start(dtype), start(dtype)
    whole, first, second = (StraightenedAdamW([each], modulator="relative") for each in (p, q, r))
    trained(whole, p, 0, 20)
    trained(first, q, 0, 20)
    if evaluating:
        first.eval()
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    r.data.copy_(q.data)
    if evaluating:
        whole.eval()
        whole.train()
        second.train()
    trained(whole, p, 20, 40)
    trained(second, r, 20, 40)
    assert torch.equal(p, r)


def test_a_checkpoint_of_another_optimizer_is_refused() -> None:
    p, q = start(), start()
    adamw, optimizer = torch.optim.AdamW([p]), StraightenedAdamW([q])
    step(adamw, p, torch.ones(SHAPE, dtype=torch.float64))
    with pytest.raises(ValueError, match="lacks 'lead'"):
        optimizer.load_state_dict(adamw.state_dict())
    assert not optimizer.state


def test_evaluation_is_at_the_average_and_back() -> None:
    p = start(torch.float32)
    optimizer = StraightenedAdamW([p])
    optimizer.eval()
    optimizer.train()
    trained(optimizer, p, 0, 30)
    w, x = p.detach().clone(), published(optimizer, p)
    assert torch.equal(p, w)
    assert not torch.equal(w, x)
    optimizer.eval()
    optimizer.eval()
    assert torch.equal(p, x)
    with pytest.raises(RuntimeError, match=r"call optimizer\.train\(\) first"):
        optimizer.step()
    assert torch.equal(published(optimizer, p), x)
    optimizer.train()
    torch.testing.assert_close(p.detach(), w)
    with optimizer.straightened(), pytest.raises(RuntimeError, match="first"):
        optimizer.step()


def test_only_hidden_weights_have_a_reach() -> None:
    """By shape and name; ``hidden`` decides for a group. Others are ahead by 1 − β1 alone."""
    names = ("layer.weight", "layer.bias", "tok_embeddings.weight")
    params = [nn.Parameter(torch.ones(shape)) for shape in ((3, 3), (3,), (3, 3))]
    groups = [{"params": list(zip(names, params, strict=True))}, {"params": [("a", start())], "hidden": False}]
    optimizer = StraightenedAdamW(groups)
    everything = [p for group in optimizer.param_groups for p in group["params"]]
    for lr in (0.02, 0.02, 0.02, 0.01):
        for p in everything:
            p.grad = torch.randn_like(p)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    kappas = [float(optimizer.state[p]["kappa"]) for p in everything]
    assert kappas[0] > 0.11
    assert kappas[1:] == pytest.approx([0.1, 0.1, 0.1])


def test_compiled_it_is_the_same_and_a_changing_lr_does_not_compile_again() -> None:
    p, q = start(), start()
    eager, compiled = StraightenedAdamW([p]), StraightenedAdamW([q], lr=torch.tensor(0.0, dtype=torch.float64))
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled_step = torch.compile(compiled.step, backend=counter)
    for t, g in enumerate(gradients(12), 1):
        step(eager, p, g, 0.02 * cosine(t, 12))
        compiled.param_groups[0]["lr"].fill_(0.02 * cosine(t, 12))
        q.grad = g.clone()
        compiled_step()
        if t == 2:  # the first step makes the state, and differs
            frames = counter.frame_count
    assert counter.frame_count == frames > 0
    torch.testing.assert_close(p, q, rtol=1e-10, atol=1e-12)


@given(
    lrs=st.lists(st.floats(0, 0.1), min_size=1, max_size=12),
    gamma=st.floats(0, 2),
    memory=st.none() | st.floats(1, 50),
    averaging=st.floats(0, 10),
)
def test_any_schedule_is_the_reference(lrs: list[float], gamma: float, memory: float | None, averaging: float) -> None:
    p = start()
    options = {"gamma": gamma, "memory": memory, "averaging": averaging}
    reference, optimizer = reference_of(p, options), StraightenedAdamW([p], **options)
    for g, lr in zip(gradients(len(lrs)), lrs, strict=False):
        step(optimizer, p, g, lr)
        reference.step(g, lr)
        torch.testing.assert_close(p.detach(), reference.w, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(published(optimizer, p), reference.x, rtol=1e-6, atol=1e-6)
        assert lr > 0 or torch.equal(p, published(optimizer, p))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr=-1.0 is out of range"),
        ({"betas": (1.0, 0.95)}, r"betas\[0\]=1.0 is out of range"),
        ({"betas": 0.9}, "betas must be a pair"),
        ({"gamma": -0.1}, "gamma=-0.1 is out of range"),
        ({"averaging": math.nan}, "averaging=nan is out of range"),
        ({"memory": 0.5}, "memory=0.5 is out of range"),
        ({"fade": 0.0}, "fade=0.0 is out of range"),
        ({"modulator": "none"}, "modulator='none' is unknown"),
        ({"hidden": 1}, "hidden must be True, False or None"),
        ({"maximize": None}, "maximize must be True or False"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        StraightenedAdamW([start()], **options)
    optimizer = StraightenedAdamW([start()])
    with pytest.raises((TypeError, ValueError), match=message):
        optimizer.add_param_group({"params": [start()], **options})
    assert len(optimizer.param_groups) == 1


def test_sparse_gradients_are_refused_before_anything_moves() -> None:
    p, q = start(torch.float32), start(torch.float32)
    optimizer = StraightenedAdamW([{"params": [p]}, {"params": [q]}])
    p.grad, q.grad = torch.ones(SHAPE), torch.ones(SHAPE).to_sparse()
    before = p.detach().clone()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert torch.equal(p, before)
    assert not optimizer.state


def test_maximize_and_a_closure() -> None:
    p, q = start(), start()
    down, up = StraightenedAdamW([p]), StraightenedAdamW([q], maximize=True)
    for g in gradients(5):
        step(down, p, g)
        q.grad = -g
        assert up.step(lambda: 3.0) == 3.0
    assert torch.equal(p, q)
