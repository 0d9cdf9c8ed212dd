"""Parameter groups with weight decay and a reach, and without, by module type and parameter name."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from .arguments import check_number
from .state import hidden_flags

NO_DECAY_TYPES: tuple[type[nn.Module], ...] = (
    _NormBase,  # BatchNorm and InstanceNorm
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.Embedding,
    nn.EmbeddingBag,
)
"""Modules whose parameters are usually not decayed."""

NO_DECAY_NAMES = ("bias", "*.bias", "*_bias", "bias_*", "*.bias_*")
"""Shell-style patterns for names of parameters that are usually not decayed. They cover the biases of attention and
recurrent modules, such as ``in_proj_bias``, ``bias_k`` and ``bias_ih_l0``."""


def param_groups(
    model: nn.Module,
    weight_decay: float = 1e-2,
    *,
    types: Sequence[type[nn.Module]] = NO_DECAY_TYPES,
    names: Sequence[str] = NO_DECAY_NAMES,
) -> list[dict[str, Any]]:
    """Two parameter groups of a model: with weight decay, and without it for norms, biases and embeddings.

    The second group has no reach either (``hidden=False``), whatever the names and shapes of its parameters. Optimizers
    without a reach keep this option and do not read it.

    Args:
        model: a module. Each of its parameters that require gradients is in one group. A parameter shared by several
            modules is not decayed if one of these modules excludes it, and has its name in the first one.
        weight_decay: weight decay of the first group, >= 0.
        types: module types whose own parameters are not decayed, with their subclasses. The default also excludes
            modules whose class name contains "norm", such as norms that a library defines itself.
        names: patterns of full names that are not decayed. They replace the default, which matches biases. To add some:
            ``names=(*hatam.groups.NO_DECAY_NAMES, "*.scale", "pos_embed")``.

    Returns:
        groups of named parameters for any torch optimizer, without empty groups.

    Raises:
        TypeError: ``model`` is not a module.
        ValueError: the model has no parameter that requires a gradient, a pattern matches none of its parameters, or
            the weight decay is negative.

    Example:
        >>> import torch, hatam
        >>> model = torch.nn.Sequential(torch.nn.Embedding(10, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
        >>> groups = hatam.param_groups(model, weight_decay=0.1)
        >>> print(hatam.describe(groups))
        weight_decay=0.1: 1 tensor, 8 parameters
            2.weight (2, 4)
        weight_decay=0.0: 4 tensors, 50 parameters
            0.weight (10, 4)
            1.weight (4,)
            1.bias (4,)
            2.bias (2,)
        >>> optimizer = hatam.HATAM(groups, lr=1e-3)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, not of type {type(model).__name__}; pass the model itself")
    check_number("weight_decay", weight_decay, 0.0, math.inf, open_end=True, remedy="0 turns it off")
    held = list(_held(model))
    if not any(p.requires_grad for _, _, p in held):
        raise ValueError("model has no parameter that requires a gradient; unfreeze some first")
    for pattern in names:
        if pattern not in NO_DECAY_NAMES and not any(fnmatchcase(name, pattern) for name, _, _ in held):
            raise ValueError(
                f"names: {pattern!r} matches no parameter of the model; use names from "
                f"model.named_parameters(), such as {held[0][0]!r}"
            )
    excluded = {
        p
        for name, module, p in held
        if isinstance(module, tuple(types))
        or (types is NO_DECAY_TYPES and "norm" in type(module).__name__.lower())
        or any(fnmatchcase(name, pattern) for pattern in names)
    }
    by_decay: dict[bool, list[tuple[str, Tensor]]] = {True: [], False: []}
    for name, p in model.named_parameters():
        if p.requires_grad:
            by_decay[p not in excluded].append((name, p))
    groups: list[dict[str, Any]] = [
        {"params": by_decay[True], "weight_decay": weight_decay},
        {"params": by_decay[False], "weight_decay": 0.0, "hidden": False},
    ]
    return [group for group in groups if group["params"]]


def _held(model: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Every parameter with its full name and module, once for each module that has it."""
    for prefix, module in model.named_modules():
        for name, p in module.named_parameters(recurse=False):
            yield (f"{prefix}.{name}" if prefix else name), module, p


def describe(groups: Sequence[Mapping[str, Any]] | Optimizer) -> str:
    """A text for logs that lists the parameters of each group, from :func:`param_groups` or an optimizer.

    Of a :class:`hatam.HATAM` it says which parameters have a reach.

    Example:
        >>> import torch, hatam
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2, bias=False))
        >>> print(hatam.describe(hatam.HATAM(model.named_parameters(), weight_decay=0.1)))
        weight_decay=0.1: 3 tensors, 21 parameters
            0.weight (3, 4), reach
            0.bias (3,)
            1.weight (2, 3), reach
    """
    lines = []
    for group in groups.param_groups if isinstance(groups, Optimizer) else groups:
        named = [p if isinstance(p, tuple) else (f"number {i}", p) for i, p in enumerate(group["params"])]
        if "param_names" in group:  # where an optimizer keeps the names
            named = list(zip(group["param_names"], group["params"], strict=True))
        count = sum(p.numel() for _, p in named if not is_lazy(p))
        tensors = "tensor" if len(named) == 1 else "tensors"
        lines.append(f"weight_decay={group.get('weight_decay', 0.0)}: {len(named)} {tensors}, {count:,} parameters")
        reaching = hidden_flags(group) if group.get("gamma") and "hidden" in group else [False] * len(named)
        for (name, p), reaches in zip(named, reaching, strict=True):
            shape = "not initialized yet" if is_lazy(p) else tuple(p.shape)
            lines.append(f"    {name} {shape}{', reach' if reaches else ''}")
    return "\n".join(lines)
