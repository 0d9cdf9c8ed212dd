"""Running statistics of BatchNorm at the point to evaluate."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .optimizer import HATAM


def update_bn(
    loader: Iterable[Any], model: nn.Module, optimizer: HATAM, device: torch.device | int | None = None
) -> None:
    """Gather the running statistics of all BatchNorm layers at z, from one pass over a loader without gradients.

    In training they follow the weights at which gradients are taken. This is :func:`torch.optim.swa_utils.update_bn` at
    the point to evaluate; the weights are afterwards what they were.

    Args:
        loader: batches of inputs, or tuples whose first entry they are; about as many as a running mean covers.
        model: with BatchNorm layers; without any this does nothing.
        optimizer: of the model.
        device: where inputs are moved to, None leaves them.

    Example:
        >>> import torch
        >>> from hatam import HATAM, update_bn
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
        >>> optimizer = HATAM(model.parameters())
        >>> update_bn([torch.tensor([[1.0, 0.0], [0.0, 1.0]])], model, optimizer)
        >>> int(model[1].num_batches_tracked)
        1
    """
    with optimizer.straightened():
        torch.optim.swa_utils.update_bn(loader, model, device)
