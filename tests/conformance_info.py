"""HATAM as torch's own tests describe an optimizer: what it is built with, what it refuses, which paths it has."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import CosineAnnealingLR, ReduceLROnPlateau, StepLR

pytest.importorskip("expecttest", reason="torch.testing._internal needs it")
from torch.testing._internal.common_optimizers import (
    ErrorOptimizerInput,
    OptimizerInfo,
    OptimizerInput,
    _get_optim_inputs_including_global_cliquey_kwargs,
    get_error_inputs_for_all_optims,
)

from hatam import HATAM

DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)

GPUS = DEVICES[1:]  # without one, a test of theirs is skipped; make gpu-check runs it where there is one

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "lr": {"lr": 0.01},
    "weight_decay": {"weight_decay": 0.1},
    "maximize": {"weight_decay": 0.1, "maximize": True},
    "AdamW": {"gamma": 0.0},
    "relative": {"modulator": "relative"},
    "every tensor": {"hidden": True},
}
CAPTURABLE: dict[str, dict[str, Any]] = {
    "capturable": {"capturable": True},
    "capturable, tensor lr": {"capturable": True, "lr": 0.001},
    "capturable, relative": {"capturable": True, "modulator": "relative"},
}


def optim_inputs(device: str, dtype: torch.dtype | None = None) -> list[OptimizerInput]:
    """Every kind of option; on a GPU, with its state kept there too."""
    known = OPTIONS | (CAPTURABLE if torch.device(device).type == "cuda" else {})
    small = {"eps": 0.1} if dtype == torch.float16 else {}  # 1e-8 is 0 in float16
    made = []
    for desc, options in known.items():
        tensor_lr = {"lr": torch.tensor(options["lr"], device=device)} if "tensor lr" in desc else {}
        made.append(OptimizerInput(params=None, kwargs={**small, **options, **tensor_lr}, desc=desc))
    return made


# What torch's own list expects in other words than HATAM's: where it warns HATAM refuses, and messages say more.
OTHER_WORDS = {
    "a param group cannot have duplicate parameters": (ValueError, "number 1 of a parameter group is the same tensor"),
    "Tensor lr must be 1-element": (ValueError, r"lr as a tensor must have one element, not shape \(2,\)"),
}
REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"betas": (1.0, 0.0)}, ValueError, r"betas\[0\]=1.0 is out of range: it must be in \[0, 1\)"),
    ({"betas": (0.9, torch.tensor(0.99))}, TypeError, r"betas\[1\] must be a number in \[0, 1\)"),
    ({"betas": (torch.tensor(0.9), 0.99)}, TypeError, r"betas\[0\] must be a number in \[0, 1\)"),
    ({"weight_decay": -1}, ValueError, r"weight_decay=-1 is out of range: it must be in \[0, inf\)"),
    ({"lr": torch.tensor(0.001), "foreach": True}, ValueError, "needs capturable=True if foreach=True"),
    ({"foreach": True, "fused": True}, ValueError, "fused=True and foreach=True exclude each other"),
    ({"fused": True, "differentiable": True}, ValueError, "fused=True and differentiable=True exclude each other"),
]


def optim_error_inputs(device: str, dtype: torch.dtype) -> list[ErrorOptimizerInput]:
    """Torch's for every optimizer, and what AdamW's list has beyond."""
    made = get_error_inputs_for_all_optims(device, dtype)
    for case in made:
        kind, words = OTHER_WORDS.get(case.optimizer_error_input.desc, (case.error_type, case.error_regex))
        case.error_type, case.error_regex = kind, words
    for options, kind, words in REFUSED:
        of = OptimizerInput(params=None, kwargs=options, desc=str(options))
        made.append(ErrorOptimizerInput(of, error_type=kind, error_regex=words))
    return made


INFO = OptimizerInfo(
    HATAM,
    optim_inputs_func=optim_inputs,
    optim_error_inputs_func=optim_error_inputs,
    scheduler_inputs=(
        [lambda o: StepLR(o, gamma=0.9, step_size=10)],
        [lambda o: CosineAnnealingLR(o, 20)],
        [lambda o: StepLR(o, gamma=0.9, step_size=10), lambda o: ReduceLROnPlateau(o)],
    ),
    supported_impls=("foreach", "differentiable", "fused"),
    not_og_supported_flags=("foreach", "differentiable", "maximize", "capturable", "fused"),
    has_capturable_arg=True,
    supports_fused_on=("cpu", "cuda"),
)


def inputs(device: str, skip: Iterable[str] = ("differentiable",)) -> list[OptimizerInput]:
    """Every input with every path on."""
    made: list[OptimizerInput] = _get_optim_inputs_including_global_cliquey_kwargs(device, None, INFO, skip=tuple(skip))
    return made


def every_input(skip: Iterable[str] = ("differentiable",)) -> Any:
    """A test for every device, input and path; what does not go with ``differentiable``, or else, is skipped."""
    return _parametrized((device, case) for device in DEVICES for case in inputs(device, skip))


def every_plain_input(devices: Iterable[str] = DEVICES) -> Any:
    """A test for every device and input, whose path is then the test's to choose."""
    return _parametrized((device, case) for device in devices for case in optim_inputs(device))


def _parametrized(cases: Iterable[tuple[str, OptimizerInput]]) -> Any:
    made = [pytest.param(device, case.kwargs, id=f"{device}-{case.desc}") for device, case in cases]
    return pytest.mark.parametrize(("device", "options"), made)


class Line:
    """A weight and a bias with a squared loss, which a few steps must lower."""

    def __init__(self, device: str, contiguous: bool = True) -> None:
        rng = torch.Generator().manual_seed(0)
        shape = (10, 5) if contiguous else (10, 5, 2)
        weight, bias = torch.randn(shape, generator=rng), torch.randn(shape[:1] + shape[2:], generator=rng)
        self.x = torch.randn(5, generator=rng).to(device)
        self.weight, self.bias = (
            Parameter(t.to(device)[..., 0] if not contiguous else t.to(device)) for t in (weight, bias)
        )
        self.params = [self.weight, self.bias]

    def backward(self) -> float:
        for p in self.params:
            p.grad = None
        loss = (self.weight.mv(self.x) + self.bias).square().sum()
        loss.backward()
        return loss.item()

    def check(self, before: float, options: dict[str, Any]) -> None:
        after = self.backward()
        assert after > before if options.get("maximize") else after < before


def train(line: Line, optimizer: HATAM, schedulers: Iterable[Any] = ()) -> None:
    """Twenty steps and their schedule."""
    for _ in range(20):
        loss = line.backward()
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step(*[loss] * isinstance(scheduler, ReduceLROnPlateau))
