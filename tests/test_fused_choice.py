"""When the CPU kernel serves, what happens where there is none, and who calls a step: a loss scaler, the compiler."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import (
    Reaching,
    bits,
    equal,
    every_variant,
    feed,
    gradients,
    kernel_calls,
    parameters,
    relative_error,
    through_a_file,
    twins,
)

from hatam import fused
from hatam.fused import cpu

# Which path ---------------------------------------------------------------------------------------------------------

CHOICES: dict[str, tuple[dict[str, Any], bool]] = {
    "default": ({}, True),
    "True": ({"fused": True}, True),
    "False": ({"fused": False}, False),
    "tensor-lr": ({"lr": torch.tensor(0.01)}, True),
    "True-tensor-lr": ({"fused": True, "lr": torch.tensor([0.01], dtype=torch.float64)}, True),
    "foreach": ({"foreach": True}, False),
    "single": ({"foreach": False}, False),
    "True-not-foreach": ({"fused": True, "foreach": False}, True),
    "relative": ({"modulator": "relative"}, True),
    "gamma-0": ({"gamma": 0.0}, False),
    "True-gamma-0": ({"fused": True, "gamma": 0.0}, False),
    "8bit": ({"state_dtype": "8bit"}, False),
}


@pytest.mark.parametrize(("options", "taken"), CHOICES.values(), ids=CHOICES.keys())
def test_which_path(options: dict[str, Any], taken: bool) -> None:
    """``fused`` decides; None leaves the choice to whoever asked for another path. All paths lead to the same place."""
    options = {"lr": 0.01, **options}
    if options.get("state_dtype") == "8bit":
        pytest.importorskip("torchao")
    if isinstance(options["lr"], torch.Tensor):
        options["lr"] = options["lr"].clone()
    params = parameters([(64, 64)])
    others, grads = twins(params), gradients(params, 6)
    with kernel_calls() as calls:
        feed(Reaching(params, **options), params, grads)
    assert calls == ([1] * 6 if taken else [])
    options = {k: v for k, v in options.items() if k not in ("fused", "foreach", "capturable")}
    feed(Reaching(others, **{**options, "lr": 0.01}, fused=False, foreach=False), others, grads)
    assert all(relative_error(p, q) <= 2e-6 for p, q in zip(params, others, strict=True))


def test_differentiable_is_another_path() -> None:
    """The kernel cannot be differentiated through."""
    optimizer = Reaching(parameters([(3,)]), 0.01, differentiable=True)
    p = optimizer.param_groups[0]["params"][0] = torch.ones(3)  # a leaf must not be written to here
    p.grad = torch.ones(3)
    with kernel_calls() as calls:
        optimizer.step()
    assert calls == []


# Without a kernel ---------------------------------------------------------------------------------------------------

FAULTS = {
    "missing": "it was not built",
    "corrupt": "it does not load",
    "of-something-else": "it does not load",
    "of-another-version": "of another version",
}


@pytest.fixture(params=FAULTS, ids=str)
def fault(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """A machine on which the kernel is not to be had, and in which words."""
    library = tmp_path / "_cpu.so"
    if request.param == "corrupt":
        library.write_bytes(b"\x7fELF and no more")
    elif request.param == "of-something-else":
        library = Path(sys.modules["_ctypes"].__file__ or "")
    if request.param == "of-another-version":
        monkeypatch.setattr(cpu, "LAYOUT", cpu.LAYOUT + 1)
    else:
        monkeypatch.setattr(cpu, "LIBRARY", library)
    cpu.load.cache_clear()
    fused.is_available.cache_clear()
    yield FAULTS[request.param]
    monkeypatch.undo()
    cpu.load.cache_clear()
    fused.is_available.cache_clear()


def test_none_falls_back_and_says_so_once(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    """Not at import, not at construction, not for every optimizer: at the first step that has to do without."""
    runs = []
    caplog.set_level(logging.INFO, "hatam")
    for options in ({}, {"modulator": "relative"}, {"fused": False}, {"foreach": True}):
        params = parameters()
        feed(Reaching(params, 0.01, **options), params, gradients(params, 3))
        runs.append(params)
    assert [(record.name, record.levelname) for record in caplog.records] == [("hatam", "WARNING")]
    message = caplog.records[0].getMessage()
    assert fault in message
    assert cpu.REMEDY in message
    assert equal(runs[0], runs[2])


@pytest.mark.parametrize("gamma", [0.0, 1.0])
def test_true_is_refused_with_the_remedy(fault: str, gamma: float) -> None:
    """At construction, and in add_param_group, which leaves nothing behind."""
    first, second = parameters(((3,), (2,)))
    with pytest.raises(RuntimeError, match=rf"^fused=True: .*{fault}.*pip install") as raised:
        Reaching([first], 0.01, fused=True, gamma=gamma)
    assert cpu.REMEDY in str(raised.value)
    optimizer = Reaching([first], 0.01, gamma=gamma)
    feed(optimizer, [first], gradients([first], 2))
    before = repr(optimizer.state_dict())
    with pytest.raises(RuntimeError, match=fault):
        optimizer.add_param_group({"params": [second], "fused": True})
    assert repr(optimizer.state_dict()) == before
    optimizer.add_param_group({"params": [second]})
    feed(optimizer, [first, second], gradients([first, second], 2))


def test_a_checkpoint_with_true_goes_on_without_a_kernel() -> None:
    """It was saved where there was one."""
    params = parameters()
    optimizer = Reaching(params, 0.01, fused=True)
    feed(optimizer, params, gradients(params, 3))
    saved = through_a_file(optimizer.state_dict())
    others = twins(params)
    feed(optimizer, params, gradients(params, 3, seed=2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "load", lambda: "it was taken away")
        fused.is_available.cache_clear()
        try:
            other = Reaching(others, 0.5)
            other.load_state_dict(saved)
            with kernel_calls() as calls:
                feed(other, others, gradients(params, 3, seed=2))
        finally:
            fused.is_available.cache_clear()
    assert calls == []
    assert all(relative_error(p, q) <= 2e-6 for p, q in zip(params, others, strict=True))


# A GradScaler -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "supported"),
    [([True], True), ([None], False), ([False], False), ([True, True], True), ([True, None], False)],
    ids=str,
)
def test_only_with_true_the_scale_is_left_to_the_step(flags: list[bool | None], supported: bool) -> None:
    """GradScaler and Lightning ask; one group without it is enough for a no."""
    groups = [{"params": parameters([(3,)]), "fused": flag} for flag in flags]
    assert Reaching(groups, 0.01)._step_supports_amp_scaling is supported


AMP: dict[str, tuple[torch.dtype, dict[str, Any]]] = {
    "float32": (torch.float32, {}),
    "maximize": (torch.float32, {"maximize": True}),
    "m-bf16": (torch.float32, {"state_dtype": torch.bfloat16}),
    "bf16-random": (torch.bfloat16, {"bf16_stochastic_round": True}),
    "relative": (torch.float32, {"modulator": "relative"}),
    "gamma-0": (torch.float32, {"gamma": 0.0}),
    "gamma-0-maximize": (torch.float32, {"gamma": 0.0, "maximize": True}),
    "gamma-0-m-bf16": (torch.float32, {"gamma": 0.0, "state_dtype": torch.bfloat16}),
}


@pytest.mark.parametrize("unscale_first", [False, True], ids=["in-the-step", "unscaled-first"])
@pytest.mark.parametrize(("dtype", "options"), AMP.values(), ids=AMP.keys())
def test_scaled_steps(dtype: torch.dtype, options: dict[str, Any], unscale_first: bool) -> None:
    """An infinite gradient moves nothing, not a bit, at the first step either; the other steps are those unscaled.

    Gradients that are unscaled first, as for clipping, are not unscaled again.
    """
    params = parameters(((5, 4), (7,)), dtype)
    others = twins(params)
    optimizer, plain = (Reaching(ps, 0.01, **options, fused=True) for ps in (params, others))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for i, row in enumerate(gradients(params, 6)):
        scale = scaler.scale(torch.ones(())).item()
        for p, q, g in zip(params, others, row, strict=True):
            p.grad, q.grad = g * scale, g.clone()
        skipped = i in (0, 3)
        if skipped:
            params[1].grad[2] = math.inf
            optimizer.param_groups[0]["lr"] = 1.0  # which the peak must not hear of
        before, state = [bits(p) for p in params], repr(optimizer.state_dict())
        if unscale_first:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        if skipped:
            assert [bits(p) for p in params] == before
            assert repr(optimizer.state_dict()) == state
            optimizer.param_groups[0]["lr"] = 0.01
        else:
            plain.step()
    assert not hasattr(optimizer, "found_inf")
    assert all(bits(p) == bits(q) for p, q in zip(params, others, strict=True))


@every_variant
def test_a_scale_that_is_no_power_of_two(options: dict[str, Any]) -> None:
    """To a rounding of the gradients."""
    params = parameters()
    others, grads = twins(params), gradients(params, 10)
    optimizer = Reaching(params, 0.01, **options, fused=True)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor([3.0]), torch.tensor([0.0])
    feed(optimizer, params, [[3.0 * g for g in row] for row in grads])
    feed(Reaching(others, 0.01, **options, fused=True), others, grads)
    assert all(relative_error(p, q) <= 1e-6 for p, q in zip(params, others, strict=True))


# The compiler -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fused", "options"),
    [(None, {}), (True, {"state_dtype": torch.bfloat16}), (True, {"modulator": "relative"})],
    ids=str,
)
def test_a_compiled_step(fused: bool | None, options: dict[str, Any]) -> None:
    """The compiler fuses by itself (and leaves capturable=True behind); its steps and the kernel's can be mixed."""
    import torch._dynamo

    torch._dynamo.reset()
    params = parameters([(40, 3), (5,)])
    others, grads = twins(params), gradients(params, 6)
    optimizer = Reaching(params, torch.tensor(0.01), **options, fused=fused)
    other = Reaching(others, 0.01, **options, fused=True)
    step = torch.compile(optimizer.step, backend="aot_eager")
    with kernel_calls() as calls:
        for i, row in enumerate(grads):
            for p, g in zip(params, row, strict=True):
                p.grad = g.clone()
            (step if i < 4 else optimizer.step)()
    assert calls == [2, 2] or (not fused and optimizer.param_groups[0]["capturable"] and not calls)
    feed(other, others, grads)
    tolerance = 1e-3 if "state_dtype" in options else 2e-6
    assert all(relative_error(p, q) <= tolerance for p, q in zip(params, others, strict=True))
