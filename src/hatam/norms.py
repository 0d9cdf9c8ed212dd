"""‖w_0‖, the norm of all weights where training starts, of which the radius "absolute" is a share, and their number.

Each parameter group keeps its own as ``start_norm`` and ``start_numel``, None while they are not known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from . import sharded
from .fused.batches import PLAIN, picked
from .radii import Start, needs_norm

NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128}


def at_first_step(groups: Sequence[dict[str, Any]], known: bool) -> Start | None:
    """The start of all groups, measured anew unless it is ``known``: by then weights have come that were not there.

    All processes come here alike, with all groups. A group that has come since, or that no norm was asked of so far, is
    measured where it is; what a lazy module has yet to make counts for nothing from then on.
    """
    if any(map(needs_norm, groups)):
        for group in groups:
            if not known or group["start_norm"] is None:
                keep(group, of_params([p for p in group["params"] if not is_lazy(p)]))
    return of_groups(groups)


def has_begun(groups: Iterable[Mapping[str, Any]], has_state: bool) -> bool:
    """Whether there has been a step at an lr above 0. A compiler, or a graph that is captured, must not look."""
    if torch.compiler.is_compiling() or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
        return True
    peaks = [group["lr_peak"] for group in groups if needs_norm(group)]  # others' may be on a device
    return has_state and any((peak.item() if isinstance(peak, Tensor) else peak) > 0 for peak in peaks)


def of_groups(groups: Iterable[Mapping[str, Any]]) -> Start | None:
    """That of all parameter groups of an optimizer; None where one of them has not been measured yet."""
    norms, numels = zip(*((group["start_norm"], group["start_numel"]) for group in groups), strict=True)
    if None in norms:
        return None
    return Start(float(sum(x * x for x in norms) ** 0.5), None if None in numels else sum(numels))


def keep(group: dict[str, Any], start: Start | None) -> None:
    """In the group, and so in checkpoints."""
    group["start_norm"], group["start_numel"] = start or (None, None)


def of_group(group: Mapping[str, Any]) -> Start | None:
    """That of a group before its first step; None where none is asked of it."""
    return of_params(group["params"]) if needs_norm(group) else None


def of_params(params: Iterable[Tensor]) -> Start | None:
    """That of all these parameters, of every process' parts; None where some hold no numbers yet.

    What is quantized, sparse or not finite counts for nothing: it is not trained.
    """
    params = list(params)
    if any(is_lazy(p) or sharded.local(p).is_meta or is_fake(sharded.local(p)) for p in params):
        return None
    square, numel = 0.0, 0.0
    for key, places in sharded.by_mesh(params).items():
        some = picked(params, places)
        held = [1 if key is None else sharded.copies(p, key[0]) for p in some]
        each = [measured(sharded.local(p.detach()), p.requires_grad) for p in some]
        found = [sum(x[i] / n for x, n in zip(each, held, strict=True)) for i in (0, 1)]
        if key is not None:
            wire = torch.tensor(found, dtype=torch.float64, device=sharded.local(some[0]).device)
            sharded.all_reduced({"sum": wire}, key[0])
            found = wire.tolist()
        square, numel = square + found[0], numel + found[1]
    return Start(math.sqrt(square), round(numel))


def is_fake(x: Tensor) -> bool:
    """Whether a tensor has a shape and a device, but no memory: in estimates of what a training will need."""
    return hasattr(x, "fake_mode")


def measured(x: Tensor, trained: bool) -> tuple[float, int]:
    """‖x‖², in float64 where the device has it, and how many real numbers x has; 0 where the norm is no number.

    A subclass that is trained can be measured, as it can be stepped; one that is frozen may hold packed bits.
    """
    if not (trained or type(x) in PLAIN) or x.layout != torch.strided or x.is_nested or x.dtype not in NUMBERS:
        return 0.0, 0
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    numbers = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x
    norm: float = torch.linalg.vector_norm(numbers, dtype=dtype).item()
    return (norm * norm, numbers.numel()) if math.isfinite(norm * norm) else (0.0, 0)
