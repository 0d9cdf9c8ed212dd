"""Running statistics of BatchNorm at z."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from .optimizer import HATAM
from .wrapper import Straightened


def update_bn(
    loader: Iterable[Any],
    model: nn.Module,
    optimizer: HATAM | Straightened,
    device: torch.device | int | None = None,
) -> None:
    """Compute the running statistics of all BatchNorm layers at z, in one pass over a loader without gradients.

    In training, the statistics belong to w. This function calls :func:`torch.optim.swa_utils.update_bn` at z, the point
    to evaluate, and restores the weights.

    Args:
        loader: yields batches of inputs, or tuples that begin with one; about as many as a running mean covers.
        model: the model; if it has no BatchNorm layers, nothing happens.
        optimizer: the model's optimizer.
        device: device to move inputs to; None does not move them.

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
