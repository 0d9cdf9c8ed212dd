"""HATAM's options: their checks, the pairs that exclude each other, and their values for one step."""

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
from .foreach import clone_for_autograd
from .modulators import MODULATORS
from .reach import Scalar
from .storage import STATE_DTYPES, quantized_type
from .update import Options

_rate = partial(check_number, low=0.0, high=math.inf, open_end=True)
_flag, _optional_flag = check_flag, partial(check_flag, optional=True)


def _check_state_dtype(name: str, value: object) -> None:
    if not any(value is choice or (isinstance(choice, str) and value == choice) for choice in STATE_DTYPES.values()):
        raise ValueError(f"{name}={value!r} is not supported: it must be one of {', '.join(STATE_DTYPES)}")
    if value == "8bit":
        if importlib.util.find_spec("torchao") is None:
            raise ValueError(f"{name}='8bit' needs torchao, which is not installed: pip install 'hatam[8bit]'")
        quantized_type()  # imports the class, which torch.load(…, weights_only=True) needs when a training resumes


CHECKS: dict[str, Callable[[str, Any], None]] = {
    "lr": lambda name, value: check_lr(value),
    "betas": lambda name, value: check_betas(value),
    "eps": partial(_rate, remedy="AdamW's default is 1e-8"),
    "weight_decay": partial(_rate, remedy="0 turns it off"),
    "gamma": partial(_rate, remedy="0 is AdamW"),
    "travel": partial(_rate, remedy="0 gives the full reach from the start"),
    "horizon": partial(check_number, low=0.0, high=math.inf, remedy="math.inf sets no limit"),
    "modulator": partial(check_choice, choices=MODULATORS),
    "fade": partial(check_number, low=0.0, high=1.0, open_start=True, remedy="1 scales the reach with lr"),
    "hidden": _optional_flag,
    "maximize": _flag,
    "foreach": _optional_flag,
    "capturable": _flag,
    "differentiable": _flag,
    "fused": _optional_flag,
    "state_dtype": _check_state_dtype,
    "bf16_stochastic_round": _flag,
    "seed": partial(check_integer, high=2**32),
}
"""The check of each option of a group, in the order of the constructor's arguments."""

EXCLUDED = (
    ("foreach", "differentiable"),
    ("fused", "differentiable"),
    ("fused", "foreach"),
    ("state_dtype", "differentiable"),
    ("bf16_stochastic_round", "differentiable"),
)
"""Pairs of options of which at most one may be set."""


def check(group: Mapping[str, Any], *, loaded: bool = False) -> None:
    """Raise if an option of a parameter group is invalid or excludes another one.

    Pairs are not checked in a ``loaded`` group, because its options may have changed in mid-training.

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
        raise ValueError("lr as a tensor needs capturable=True if foreach=True; leave foreach at None")


def check_amsgrad(amsgrad: object) -> None:
    """Raise unless ``amsgrad`` is False. HATAM has this argument so that calls written for AdamW keep working."""
    check_flag("amsgrad", amsgrad)
    if amsgrad:
        raise ValueError("amsgrad=True is not supported: it must be False, because HATAM has no AMSGrad; omit it")


def check_devices(group: Mapping[str, Any]) -> None:
    """Raise if a group has fused=True and a parameter on a device without a fused kernel."""
    if group["fused"]:
        reason = fused.refusal({p.device.type for p in group["params"]})
        if reason:
            raise RuntimeError(f"fused=True: {reason}")


def check_changed(group: Mapping[str, Any], checked: dict[str, Any]) -> None:
    """Check the options that are not the same objects as in the last call, and record them in ``checked``.

    Do not call this under torch.compile: it would read lr, and recompile for each new value of another option.
    """
    for name, check_one in CHECKS.items():
        value = group[name]
        if checked.get(name, CHECKS) is not value:
            check_one(name, value)
            if not isinstance(value, list):  # entries of a list, as in betas, may change in place
                checked[name] = value


def check_step(
    groups: list[dict[str, Any]], grads: list[list[Tensor | None]], checked: defaultdict[int, dict[str, Any]]
) -> None:
    """Raise for invalid changed options and sparse gradients, before any parameter changes."""
    for i, group in enumerate(groups):
        if not torch.compiler.is_compiling():
            check_changed(group, checked[i])
        for j, grad in enumerate(grads[i]):
            if grad is not None and grad.is_sparse:
                raise RuntimeError(
                    f"the gradient of parameter {name_of(group, i, j)} is sparse, which HATAM does not support: use "
                    "sparse=False in its embedding, or optimize it with a separate torch.optim.SparseAdam"
                )


def peak_like_lr(group: Mapping[str, Any]) -> Scalar:
    """Return ``lr_peak`` as a tensor if lr is one, so that torch.compile sees no changing constant; else as a float."""
    lr, peak = group["lr"], group["lr_peak"]
    if isinstance(lr, Tensor):
        dtype = lr.dtype if lr.is_floating_point() else torch.float32
        return peak if isinstance(peak, Tensor) else torch.full_like(lr, peak, dtype=dtype, requires_grad=False)
    return peak if isinstance(peak, Tensor) and not peak.is_cpu else float(peak)  # float() would wait for a device


def raise_peak(group: dict[str, Any], found_inf: Tensor | None = None) -> Scalar:
    """Raise the group's peak lr to this step's lr, unless a GradScaler skips the step, and return it.

    The group and its checkpoints hold the peak. Steps in which no parameter of the group has a gradient do not count.

    ``found_inf`` is given if only the device knows whether the step is skipped. From then on the peak is a tensor on
    that device, in float64 for a float lr.
    """
    lr, peak = group["lr"], group["lr_peak"]
    if isinstance(lr, Tensor) or isinstance(peak, Tensor):
        peak = group["lr_peak"] = peak_like_lr(group)
    if found_inf is None and not isinstance(peak, Tensor):
        peak = group["lr_peak"] = max(peak, lr)
        return peak
    if found_inf is not None and not (isinstance(peak, Tensor) and peak.device == found_inf.device):
        dtype = peak.dtype if isinstance(peak, Tensor) else torch.float64
        peak = group["lr_peak"] = torch.full((), float(peak), dtype=dtype, device=found_inf.device)
    lr_on_device = isinstance(lr, Tensor) and (found_inf is None or lr.device == peak.device)
    last = clone_for_autograd([peak])[0]
    raised = torch.maximum(last, lr.reshape(peak.shape)) if lr_on_device else last.clamp(min=float(lr))
    peak.copy_(raised if found_inf is None else torch.where(found_inf.reshape(peak.shape) != 0, peak, raised))
    return clone_for_autograd([peak])[0]


def resolve(
    group: Mapping[str, Any], lr_peak: Scalar, grad_scale: Tensor | None = None, found_inf: Tensor | None = None
) -> Options:
    """Return the options of a group for one step. A tensor lr and its peak become 0-dim, which always broadcasts."""
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
    """Yield each group with the index of its first parameter among all. Random numbers depend on these indices."""
    first = 0
    for group in groups:
        yield first, group
        first += len(group["params"])


def name_of(group: Mapping[str, Any], i: int, j: int) -> str:
    """Return the name of the j-th parameter of the i-th group, for error messages."""
    names = group.get("param_names", ())
    return names[j] if j < len(names) else f"number {j} of group {i}"
