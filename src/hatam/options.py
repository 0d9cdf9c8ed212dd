"""HATAM's options: the table of checks, the exclusions, and the options of one step."""

from __future__ import annotations

import importlib.util
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import fused, reach
from .arguments import check_betas, check_choice, check_flag, check_integer, check_lr, check_number
from .modulators import MODULATORS
from .reach import Scalar
from .storage import STATE_DTYPES, quantized_type
from .update import Options, clone_for_autograd

_rate = partial(check_number, low=0.0, high=math.inf, open_end=True)
_flag, _choice_of_path = check_flag, partial(check_flag, optional=True)


def _check_state_dtype(name: str, value: object) -> None:
    if not any(value is choice or (isinstance(choice, str) and value == choice) for choice in STATE_DTYPES.values()):
        raise ValueError(f"{name}={value!r} is not supported: it must be one of {', '.join(STATE_DTYPES)}")
    if value == "8bit":
        if importlib.util.find_spec("torchao") is None:
            raise ValueError(f"{name}='8bit' needs torchao, which is not installed: pip install 'hatam[8bit]'")
        quantized_type()  # now, so that torch.load(…, weights_only=True) knows it in a process that resumes


CHECKS: dict[str, Callable[[str, Any], None]] = {
    "lr": lambda name, value: check_lr(value),
    "betas": lambda name, value: check_betas(value),
    "eps": partial(_rate, remedy="AdamW's default is 1e-8"),
    "weight_decay": partial(_rate, remedy="0 turns it off"),
    "gamma": partial(_rate, remedy="0 is AdamW"),
    "travel": partial(_rate, remedy="0 gives the whole reach at once"),
    "horizon": partial(check_number, low=0.0, high=math.inf, remedy="math.inf sets no limit"),
    "modulator": partial(check_choice, choices=MODULATORS),
    "fade": partial(check_number, low=0.0, high=1.0, open_start=True, remedy="1 lets the reach follow lr"),
    "hidden": _choice_of_path,
    "maximize": _flag,
    "foreach": _choice_of_path,
    "capturable": _flag,
    "differentiable": _flag,
    "fused": _choice_of_path,
    "state_dtype": _check_state_dtype,
    "bf16_stochastic_round": _flag,
    "seed": partial(check_integer, high=2**32),
}
"""Every option of a group, in the order of the constructor."""

EXCLUDED = (
    ("foreach", "differentiable"),
    ("fused", "differentiable"),
    ("fused", "foreach"),
    ("state_dtype", "differentiable"),
    ("bf16_stochastic_round", "differentiable"),
)
"""Options of which at most one may be set."""


def check(group: Mapping[str, Any], *, loaded: bool = False) -> None:
    """Refuse a parameter group whose options are wrong or contradict each other.

    Exclusions are not checked of a loaded group: its options may have changed in mid-training.

    Raises:
        TypeError, ValueError: an option has the wrong type, is out of range, or excludes another.
    """
    for name, check_one in CHECKS.items():
        check_one(name, group[name])
    for one, other in () if loaded else EXCLUDED:
        if group[one] and group[other]:
            default = "None" if one in ("foreach", "fused", "state_dtype") else "False"
            raise ValueError(f"{one}={group[one]!r} and {other}=True exclude each other; leave {one} at {default}")
    if not loaded and isinstance(group["lr"], Tensor) and group["foreach"] and not group["capturable"]:
        raise ValueError("lr as a tensor needs capturable=True where foreach=True; leave foreach at None")


def check_amsgrad(amsgrad: object) -> None:
    """AdamW's argument is taken, so that a call that spells it out goes on working, but not its variant."""
    check_flag("amsgrad", amsgrad)
    if amsgrad:
        raise ValueError("amsgrad=True is not supported: it must be False, as HATAM has no AMSGrad; leave it out")


def check_devices(group: Mapping[str, Any]) -> None:
    """Whether the parameters of a group with fused=True are where there is a fused kernel."""
    if group["fused"]:
        reason = fused.refusal({p.device.type for p in group["params"]})
        if reason:
            raise RuntimeError(f"fused=True: {reason}")


def check_changed(group: Mapping[str, Any], checked: dict[str, Any]) -> None:
    """Check the options that are not the same objects as at the last call, and note them in ``checked``.

    Not where torch.compile traces the step: it would read lr, and it compiles anew for each value of another option.
    """
    for name, check_one in CHECKS.items():
        value = group[name]
        if checked.get(name, CHECKS) is not value:
            check_one(name, value)
            if not isinstance(value, list):  # of betas, whose entries may change
                checked[name] = value


def check_step(
    groups: list[dict[str, Any]], grads: list[list[Tensor | None]], checked: defaultdict[int, dict[str, Any]]
) -> None:
    """Refuse changed options out of range and sparse gradients, before anything has moved."""
    for i, group in enumerate(groups):
        if not torch.compiler.is_compiling():
            check_changed(group, checked[i])
        for j, grad in enumerate(grads[i]):
            if grad is not None and grad.is_sparse:
                raise RuntimeError(
                    f"the gradient of parameter {name_of(group, i, j)} is sparse, which HATAM does not support: use "
                    "sparse=False in its embedding, or give it a torch.optim.SparseAdam of its own"
                )


def peak_of_kind(group: Mapping[str, Any]) -> Scalar:
    """``lr_peak`` as a tensor where lr is one, so that torch.compile sees no constant that changes."""
    lr, peak = group["lr"], group["lr_peak"]
    if isinstance(lr, Tensor):
        dtype = lr.dtype if lr.is_floating_point() else torch.float32
        return peak if isinstance(peak, Tensor) else torch.full_like(lr, peak, dtype=dtype, requires_grad=False)
    return peak if isinstance(peak, Tensor) and not peak.is_cpu else float(peak)  # without waiting for a device


def raise_peak(group: dict[str, Any], found_inf: Tensor | None = None) -> Scalar:
    """Raise the group's peak lr by this step's, unless a GradScaler skips it. It lives in the group and checkpoints.

    Steps in which no parameter of the group has a gradient do not count.

    ``found_inf`` is given where only the device knows whether the step is skipped. The peak is a tensor there from then
    on, for a float lr in float64.
    """
    peak = group["lr_peak"] = peak_of_kind(group)
    lr = group["lr"]
    if found_inf is None and not isinstance(peak, Tensor):
        peak = group["lr_peak"] = max(peak, lr)
        return peak
    if found_inf is not None and not (isinstance(peak, Tensor) and peak.device == found_inf.device):
        dtype = peak.dtype if isinstance(peak, Tensor) else torch.float64
        peak = group["lr_peak"] = torch.full((), float(peak), dtype=dtype, device=found_inf.device)
    beside = isinstance(lr, Tensor) and (found_inf is None or lr.device == peak.device)
    last = clone_for_autograd([peak])[0]
    raised = torch.maximum(last, lr.reshape(peak.shape)) if beside else last.clamp(min=float(lr))
    peak.copy_(raised if found_inf is None else torch.where(found_inf.reshape(peak.shape) != 0, peak, raised))
    return clone_for_autograd([peak])[0]


def resolve(
    group: Mapping[str, Any], lr_peak: Scalar, grad_scale: Tensor | None = None, found_inf: Tensor | None = None
) -> Options:
    """The options of a group for one step. lr and its peak become 0-dim, which broadcasts to every parameter."""
    lr, lr_peak = (x.squeeze() if isinstance(x, Tensor) else x for x in (group["lr"], lr_peak))
    beta1, beta2 = group["betas"]
    return Options(
        lr=lr,
        beta1=beta1,
        beta2=beta2,
        eps=group["eps"],
        weight_decay=group["weight_decay"],
        reach_factor=group["gamma"] * reach.lr_factor(lr, lr_peak, group["fade"]),
        lr_peak=lr_peak,
        travel=group["travel"],
        max_reach=group["horizon"] * lr_peak if group["horizon"] < math.inf else math.inf,
        modulator=MODULATORS[group["modulator"]],
        grad_factor=(-1 if group["maximize"] else 1) / (1 if grad_scale is None else grad_scale.squeeze()),
        grad_scale=grad_scale,
        capturable=group["capturable"],
        round_param=group["bf16_stochastic_round"],
        round_state=group["bf16_stochastic_round"] or group["state_dtype"] is not None,
        seed=group["seed"],
        found_inf=found_inf,
    )


def with_first_index(groups: Iterable[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Groups with the number of their first parameter among those of all, which random numbers depend on."""
    first = 0
    for group in groups:
        yield first, group
        first += len(group["params"])


def name_of(group: Mapping[str, Any], i: int, j: int) -> str:
    """What messages call the j-th parameter of the i-th group."""
    return group["param_names"][j] if "param_names" in group else f"number {j} of group {i}"
