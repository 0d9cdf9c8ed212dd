"""The properties that torch asks of its own optimizers, asked of HATAM: its steps. The names are torch's."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from conformance_info import (
    DEVICES,
    INFO,
    Line,
    every_input,
    every_plain_input,
    optim_error_inputs,
    optim_inputs,
    train,
)
from conftest import Falling
from torch import Tensor
from torch.nn import Parameter
from torch.testing import assert_close

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Options = dict[str, Any]
pytestmark = pytest.mark.compatible("torch's own optimizer tests", "run or adapted, on every path")


def test_every_test_of_torch_is_accounted_for() -> None:
    """What is said to run is here and nothing else is, and no name is in two lists."""
    import test_conformance_paths as paths
    import test_conformance_state as state

    listed = tomllib.loads(Path(__file__).with_name("conformance.toml").read_text(encoding="utf-8"))
    here = [*listed["run"]["names"], *listed["adapted"], *listed["gpu"]["names"]]
    names = [*here, *listed["not applicable"]]
    found = {
        name for module in (sys.modules[__name__], paths, state) for name in vars(module) if name.startswith("test_")
    }
    assert set(here) == found - {"test_every_test_of_torch_is_accounted_for"}
    assert len(names) == len(set(names)) == 45
    assert all(listed["adapted"].values())
    assert all(listed["not applicable"].values())


@pytest.mark.parametrize("device", DEVICES)
def test_optim_infos_do_not_specify_global_cliquey_kwargs(device: str) -> None:
    for case in optim_inputs(device):
        assert not case.kwargs.keys() & {"foreach", "fused", "differentiable"}


@pytest.mark.parametrize(
    "case", optim_error_inputs("cpu", torch.float32), ids=lambda case: case.optimizer_error_input.desc
)
def test_errors(case: Any) -> None:
    given = case.optimizer_error_input
    params = [Parameter(torch.zeros(1, 1))] if given.params is None else given.params
    with pytest.raises(case.error_type, match=case.error_regex):
        Falling(params, **given.kwargs)


@pytest.mark.parametrize("schedulers", [[], *INFO.scheduler_inputs], ids=["none", "step", "cosine", "two"])
@pytest.mark.parametrize("contiguous", [True, False], ids=["contiguous", "strided"])
@every_plain_input()
def test_forloop_goes_right_direction(device: str, options: Options, contiguous: bool, schedulers: list[Any]) -> None:
    line = Line(device, contiguous)
    before = line.backward()
    optimizer = Falling(line.params, **options, foreach=False, fused=False)
    train(line, optimizer, [make(optimizer) for make in schedulers])
    line.check(before, options)


@pytest.mark.parametrize("schedulers", INFO.scheduler_inputs, ids=["step", "cosine", "two"])
@pytest.mark.parametrize("device", DEVICES)
def test_param_group_with_lrscheduler_goes_right_direction(device: str, schedulers: list[Any]) -> None:
    line = Line(device)
    before = line.backward()
    optimizer = Falling([{"params": [line.weight]}, {"params": [line.bias], "lr": 0.01}])
    train(line, optimizer, [make(optimizer) for make in schedulers])
    line.check(before, {})


@every_input()
def test_param_groups_weight_decay(device: str, options: Options) -> None:
    line = Line(device)
    before = line.backward()
    groups = [{"params": [line.weight], **options}, {"params": [line.bias], **options, "weight_decay": 0.0}]
    train(line, Falling(groups))
    line.check(before, options)


@every_input()
def test_param_groups_lr(device: str, options: Options) -> None:
    """A group of its own lr beside one whose lr is nearly 0 and whose parameters then stay."""
    line = Line(device)
    before = line.backward()
    still = Parameter(torch.randn(2, device=device))
    kept, options = still.detach().clone(), {"lr": 1e-3, **options}
    optimizer = Falling([{"params": line.params, **options}, {"params": [still], "gamma": 0.0}], lr=1e-28)
    still.grad = torch.rand_like(still)
    train(line, optimizer)
    line.check(before, options)
    assert torch.equal(still, kept)


@every_input()
def test_tensor_lr(device: str, options: Options) -> None:
    """A one-element tensor is the number that it holds; where it cannot be, that is said."""
    lines = [Line(device), Line(device)]
    options = {**options, "lr": 1e-3}
    if options.get("foreach") and not options.get("capturable"):
        with pytest.raises(ValueError, match="lr as a tensor needs capturable=True"):
            Falling(lines[1].params, **{**options, "lr": torch.tensor(1e-3)})
        return
    for line, lr in zip(lines, (1e-3, torch.tensor(1e-3)), strict=True):
        optimizer = Falling(line.params, **{**options, "lr": lr})
        for _ in range(5):
            line.backward()
            optimizer.step()
    for p, q in zip(lines[0].params, lines[1].params, strict=True):
        assert_close(p, q)


@every_input(skip=("differentiable", "fused"))
def test_complex(device: str, options: Options) -> None:
    """A complex parameter is the real one of its parts, also beside real ones."""
    rng = torch.Generator().manual_seed(0)
    shapes, kinds = ((10, 5), (10,), (10, 5)), (torch.complex64, torch.complex64, torch.float32)
    params = [
        torch.randn(s, dtype=k, generator=rng).to(device).requires_grad_() for s, k in zip(shapes, kinds, strict=True)
    ]
    reals = [as_real(p).detach().clone().requires_grad_() for p in params]
    optimizers = [Falling(some, **{"hidden": True, **options}) for some in (params, reals)]
    for _ in range(3):
        for p, q in zip(params, reals, strict=True):
            p.grad = torch.randn(p.shape, dtype=p.dtype, generator=rng).to(device)
            q.grad = as_real(p.grad).clone()
        for optimizer in optimizers:
            optimizer.step()
        assert_close([as_real(p.detach()) for p in params], [q.detach() for q in reals])


def as_real(x: Tensor) -> Tensor:
    return torch.view_as_real(x) if x.is_complex() else x


@pytest.mark.parametrize("foreach", [False, True], ids=["forloop", "foreach"])
@pytest.mark.parametrize("device", DEVICES)
def test_complex_2d(device: str, foreach: bool) -> None:
    """Real and imaginary part as two parameters of one loss. Without a reach, which is measured of each tensor."""
    options: Options = {"gamma": 0.0, "lr": 0.01, "foreach": foreach}
    whole = torch.tensor([0.3 + 0.4j, -0.5 + 0.8j], device=device, requires_grad=True)
    parts = [part.detach().clone().requires_grad_() for part in (whole.real, whole.imag)]
    optimizers = [Falling([whole], **options), Falling(parts, **options)]
    for _ in range(5):
        for optimizer, value in zip(optimizers, (whole, torch.complex(*parts)), strict=True):
            optimizer.zero_grad()
            x, y = value
            ((1 - x) ** 2 + 100 * (y - x**2) ** 2).abs().backward()
            optimizer.step()
        assert_close(whole.detach(), torch.complex(*parts).detach())


@every_input(skip=())
def test_step_is_noop_when_params_have_no_grad(device: str, options: Options) -> None:
    params = [torch.randn(2, 3, device=device) for _ in range(2)]
    before = copy.deepcopy(params)
    Falling(params, **options).step(lambda: torch.ones(1))
    assert all(map(torch.equal, params, before))


@every_input(skip=())
def test_step_is_noop_for_zero_grads(device: str, options: Options) -> None:
    param = torch.randn(5, 1, device=device, requires_grad=True)
    before = param.detach().clone()
    param = param.clone() if options.get("differentiable") else param
    optimizer = Falling([param], **{**options, "weight_decay": 0.0})
    for _ in range(3):
        param.grad = torch.zeros_like(param)
        optimizer.step()
    assert torch.equal(param.detach(), before)


@every_input(skip=())
def test_optimizer_can_be_printed(device: str, options: Options) -> None:
    printed = repr(Falling([torch.zeros(2, device=device, requires_grad=True)], **options))
    assert printed.startswith("Falling (")
    assert all(f"{key}: {x}" in printed for key, x in options.items() if not isinstance(x, Tensor))


@every_input()
def test_grads_are_never_inplaced_into(device: str, options: Options) -> None:
    """Whatever reads a gradient after the step finds what backward() left."""
    params = [torch.rand(2, 3, device=device, requires_grad=True) for _ in range(3)]
    optimizer = Falling(params, **options)
    for _ in range(2):
        for p in params:
            p.grad = torch.rand_like(p)
        before = [(p.grad.clone(), p.grad._version) for p in params]
        optimizer.step()
        assert all(torch.equal(p.grad, g) and p.grad._version == v for p, (g, v) in zip(params, before, strict=True))


@every_input(skip=())
def test_non_empty_state(device: str, options: Options) -> None:
    line = Line(device)
    line.backward()
    params = [p.clone() for p in line.params] if options.get("differentiable") else line.params
    for p, q in zip(params, line.params, strict=True):
        p.grad = q.grad
    optimizer = Falling(params, **options)
    optimizer.step()
    assert all({"step", "exp_avg", "exp_avg_sq"} <= state.keys() for state in optimizer.state.values())
    assert len(optimizer.state) == 2
