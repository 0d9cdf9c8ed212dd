"""Continuing a training with torch's AdamW in place of HATAM."""

from __future__ import annotations

import torch

from .optimizer import HATAM
from .storage import MOMENTS, dequantized, is_quantized

SHARED = ("lr", "betas", "eps", "weight_decay", "maximize", "foreach", "capturable", "differentiable", "fused")
"""The options of a group that AdamW and HATAM share."""


def to_adamw(optimizer: HATAM) -> torch.optim.AdamW:
    """Return an AdamW that continues a HATAM's training from z, with its parameters, groups, options and moments.

    Moments of their parameter's dtype are shared, not copied, so do not call the HATAM's ``step()`` again.

    Args:
        optimizer: the HATAM; its parameters are set to z, as by :meth:`HATAM.eval`.

    Returns:
        the AdamW. Its next step starts from z.

    Raises:
        TypeError: ``optimizer`` is not a HATAM.

    Example:
        >>> import torch
        >>> from hatam import HATAM, to_adamw
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = HATAM(model.parameters(), lr=0.01)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.step()
        >>> adamw = to_adamw(optimizer)
        >>> adamw.param_groups[0]["lr"], int(adamw.state[model.weight]["step"])
        (0.01, 1)
    """
    if not isinstance(optimizer, HATAM):
        raise TypeError(f"optimizer must be a HATAM, not {type(optimizer).__name__}; pass the wrapped HATAM, if any")
    optimizer.eval()
    groups = []
    for group in optimizer.param_groups:
        names, params = group.get("param_names", ()), group["params"]
        if len(names) == len(params):  # else parameters were appended without a name
            params = list(zip(names, params, strict=True))
        groups.append({"params": params, **{key: group[key] for key in SHARED}})
    adamw = torch.optim.AdamW(groups)
    for group in adamw.param_groups:
        stays = group["capturable"] or group["fused"]  # else the CPU reads the step count at each step
        for p in group["params"]:
            state = optimizer.state.get(p, {})
            if "step" in state:
                moments = {key: dequantized(state[key]) if is_quantized(state[key]) else state[key] for key in MOMENTS}
                adamw.state[p] = {key: x.to(p.dtype) for key, x in moments.items()}
                adamw.state[p]["step"] = state["step"] if stays else state["step"].cpu()
    return adamw
