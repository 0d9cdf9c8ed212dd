"""What HATAM accepts: every argument with its range, checked before anything is stored or moved."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, cast

from torch import Tensor
from torch.optim.optimizer import ParamsT

from . import fused
from .forms import FORMS
from .modulators import MODULATORS
from .options import name_of
from .radii import RADII
from .storage import STATE_DTYPES, quantized_type


def check(group: Mapping[str, Any], *, loaded: bool = False) -> None:
    """Refuse a parameter group whose options are wrong or contradict each other.

    A loaded group may have options that are not used: those of a group may change in mid-training, and be saved so.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option is out of range, or the chosen form does not use it.
    """
    check_lr(group["lr"])
    betas = group["betas"]
    if isinstance(betas, str) or not isinstance(betas, Sequence) or len(betas) != 2:
        raise TypeError(f"betas must be a pair of floats such as (0.9, 0.999), not {betas!r}; make it a tuple")
    check_number("betas[0]", betas[0], 0.0, 1.0, open_end=True, remedy="AdamW's default is 0.9")
    check_number("betas[1]", betas[1], 0.0, 1.0, open_end=True, remedy="AdamW's default is 0.999")
    check_number("eps", group["eps"], 0.0, math.inf, open_end=True, remedy="AdamW's default is 1e-8")
    check_number("weight_decay", group["weight_decay"], 0.0, math.inf, open_end=True, remedy="0 turns it off")
    if group["gamma"] is not None:
        check_gamma(group["gamma"])
    check_choice("form", group["form"], FORMS)
    if group["radius"] is not None:
        check_choice("radius", group["radius"], RADII)
    check_choice("modulator", group["modulator"], MODULATORS)
    if group["beta_c"] is not None:
        check_number("beta_c", group["beta_c"], 0.0, 1.0, open_end=True, remedy="None takes the form's default")
    for name in ("maximize", "capturable", "differentiable", "bf16_stochastic_round"):
        check_flag(name, group[name])
    for name in ("foreach", "fused"):
        check_flag(name, group[name], optional=True)
    check_radius_options(group)
    check_state(group)
    if not loaded:
        check_use(group)
        check_eps(group)
        check_paths(group)


def check_gamma(gamma: object) -> None:
    """The strength, which may also change from step to step."""
    check_number("gamma", gamma, 0.0, math.inf, open_end=True, remedy="0 is AdamW")


def check_amsgrad(amsgrad: object) -> None:
    """AdamW's argument is taken, so that a call that spells it out goes on working, but not its variant."""
    check_flag("amsgrad", amsgrad)
    if amsgrad:
        raise ValueError("amsgrad=True is not supported: it must be False, as HATAM has no AMSGrad; leave it out")


def check_radius_options(group: Mapping[str, Any]) -> None:
    """Caps and fade."""
    if group["modulator_cap"] is not None:
        check_number("modulator_cap", group["modulator_cap"], 0.0, math.inf, open_start=True, remedy="math.inf: no cap")
    if group["fade"] is not None:
        check_number("fade", group["fade"], 0.0, 1.0, open_start=True, remedy="1 lets the radius follow lr")
    if group["radius_cap"] is not None:
        check_number("radius_cap", group["radius_cap"], 0.0, math.inf, open_start=True, remedy="math.inf: no cap")


def check_use(group: Mapping[str, Any]) -> None:
    """Whether form and modulator use what is given."""
    if group["modulator_cap"] is not None and not MODULATORS[group["modulator"]].needs_mean:
        raise ValueError(
            f"modulator_cap={group['modulator_cap']!r} is not used by modulator={group['modulator']!r}, whose factor "
            "is always 1; leave modulator_cap at None"
        )
    for name in ("fade", "radius", "radius_cap"):
        if group[name] is not None and FORMS[group["form"]].radius is None:
            raise ValueError(
                f"{name}={group[name]!r} is not used by form={group['form']!r}, which has no radius; leave {name} at "
                "None or use form='decoupled'"
            )


def check_radius_cap(group: Mapping[str, Any]) -> None:
    """Whether the unit of a new group's radius uses its cap; in mid-training the unit may become another."""
    unit = FORMS[group["form"]].radius if group["radius"] is None else group["radius"]
    if group["radius_cap"] not in (None, math.inf) and not RADII[str(unit)].is_norm:
        raise ValueError(
            f"radius_cap={group['radius_cap']!r} is not used by radius={unit!r}, which has no cap; leave radius_cap at "
            "None or use radius='absolute'"
        )


def check_eps(group: Mapping[str, Any]) -> None:
    """Where h divides by its own mean before any gradient has come, ε must not be 0."""
    if group["eps"] == 0 and MODULATORS[group["modulator"]].needs_mean and FORMS[group["form"]].radius is None:
        raise ValueError(
            f"eps={group['eps']!r} makes the first step of form={group['form']!r} 0 / 0: it must be in (0, inf) there; "
            "AdamW's default is 1e-8"
        )


def check_paths(group: Mapping[str, Any]) -> None:
    """Code paths that exclude each other."""
    for one, other in (("foreach", "differentiable"), ("fused", "differentiable"), ("fused", "foreach")):
        if group[one] and group[other]:
            raise ValueError(f"{one}=True and {other}=True exclude each other; leave {one} at None")
    if isinstance(group["lr"], Tensor) and group["foreach"] and not group["capturable"]:
        raise ValueError("lr as a tensor needs capturable=True where foreach=True; leave foreach at None")


def check_state(group: Mapping[str, Any]) -> None:
    """In what state is kept, and from what its rounding starts."""
    value, seed = group["state_dtype"], group["seed"]
    if not any(value is choice or (isinstance(choice, str) and value == choice) for choice in STATE_DTYPES.values()):
        raise ValueError(f"state_dtype={value!r} is not supported: it must be one of {', '.join(STATE_DTYPES)}")
    if value == "8bit":
        if importlib.util.find_spec("torchao") is None:
            raise ValueError("state_dtype='8bit' needs torchao, which is not installed: pip install 'hatam[8bit]'")
        quantized_type()  # now, so that torch.load(…, weights_only=True) knows it in a process that resumes
    if value is not None and group["differentiable"]:
        raise ValueError(f"state_dtype={value!r} and differentiable=True exclude each other; leave state_dtype at None")
    if group["bf16_stochastic_round"] and group["differentiable"]:
        raise ValueError(
            "bf16_stochastic_round=True and differentiable=True exclude each other, as rounding at random has no "
            "gradient; leave bf16_stochastic_round at False"
        )
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise TypeError(f"seed must be an integer in [0, 2**32), not {seed!r} of type {type(seed).__name__}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed!r} is out of range: it must be in [0, 2**32)")


def check_devices(group: Mapping[str, Any]) -> None:
    """Whether the parameters of a group with fused=True are where there is a fused kernel."""
    if group["fused"]:
        reason = fused.refusal({p.device.type for p in group["params"]})
        if reason:
            raise RuntimeError(f"fused=True: {reason}")


def check_lr(lr: object) -> None:
    """lr may be a float or a one-element tensor."""
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError(f"lr as a tensor must have one element, not shape {tuple(lr.shape)}")
        if lr.device.type == "meta":
            return
        lr = lr.item()
    check_number("lr", lr, 0.0, math.inf, open_end=True, remedy="start from AdamW's lr, often 1e-3")


def check_number(
    name: str,
    value: object,
    low: float,
    high: float,
    *,
    remedy: str,
    open_start: bool = False,
    open_end: bool = False,
) -> None:
    """A real number in a range; NaN is in none."""
    interval = f"{'(' if open_start else '['}{low:g}, {high:g}{')' if open_end else ']'}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f"{name} must be a number in {interval}, not {value!r} of type {type(value).__name__}; {remedy}"
        )
    try:
        x = float(value)
    except OverflowError:  # an integer beyond any float
        x = math.nan
    above = x > low if open_start else x >= low
    below = x < high if open_end else x <= high
    if not (above and below):
        raise ValueError(f"{name}={value!r} is out of range: it must be in {interval}; {remedy}")


def check_choice(name: str, value: object, choices: Mapping[str, object]) -> None:
    """One of a table's names."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, not {value!r} of type {type(value).__name__}")
    if value not in choices:
        raise ValueError(f"{name}={value!r} is unknown: it must be one of {', '.join(map(repr, choices))}")


def check_flag(name: str, value: object, *, optional: bool = False) -> None:
    """True, False or, where optional, None."""
    if not (isinstance(value, bool) or (optional and value is None)):
        allowed = "True, False or None" if optional else "True or False"
        raise TypeError(f"{name} must be {allowed}, not {value!r} of type {type(value).__name__}")


def listed(params: ParamsT) -> ParamsT:
    """The parameters as a list that is not empty; what torch refuses it shall refuse in its own words."""
    if isinstance(params, (Tensor, dict)) or not isinstance(params, Iterable):
        return params
    listed: Any = list(params)
    if not listed:
        raise ValueError("params is empty; pass model.parameters() of a model that has parameters")
    return cast(ParamsT, listed)


def check_params(params: list[Any]) -> None:
    """Each parameter once; torch only warns, but a second update in one step is never what was meant."""
    seen: dict[int, int] = {}
    for index, param in enumerate(params):
        first = seen.setdefault(id(param), index)
        if first != index:
            raise ValueError(
                f"params: number {index} of a parameter group is the same tensor as number {first}; list every "
                "parameter once, as module.parameters() does"
            )


def looks_right(group: Mapping[str, Any]) -> bool:
    """Whether what may change in mid-training is in its range: quick, for every step. Else :func:`check` says what."""
    gamma, betas, lr = group["gamma"], group["betas"], group["lr"]
    return (
        type(gamma) is float
        and 0.0 <= gamma < math.inf
        and type(betas) is tuple
        and len(betas) == 2
        and all(type(beta) is float and 0.0 <= beta < 1.0 for beta in betas)
        and (lr.numel() == 1 if isinstance(lr, Tensor) else type(lr) is float and 0.0 <= lr < math.inf)
        and (group["fade"] is None or 0.0 < group["fade"] <= 1.0)
        and all(group[cap] is None or group[cap] > 0.0 for cap in ("modulator_cap", "radius_cap"))
        and group["form"] in FORMS
        and group["modulator"] in MODULATORS
        and (group["radius"] is None or group["radius"] in RADII)
    )


def check_step(groups: list[dict[str, Any]]) -> None:
    """Options that a group was given since and sparse gradients are refused before anything has moved."""
    for i, group in enumerate(groups):
        if not looks_right(group):
            check_gamma(group["gamma"])
            check(group, loaded=True)
        for j, p in enumerate(group["params"]):
            if p.grad is not None and p.grad.is_sparse:
                raise RuntimeError(
                    f"the gradient of parameter {name_of(group, i, j)} is sparse, which HATAM does not support: use "
                    "sparse=False in its embedding, or give it a torch.optim.SparseAdam of its own"
                )
