"""Losses and metrics that tasks share: one number per sample."""

from __future__ import annotations

import math

from torch import Tensor
from torch.nn import functional as F


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every sample, in nats; of a sequence the mean over its places.

    Args:
        outputs: logits, shape ``(n, classes)`` or ``(n, classes, length)``.
        targets: classes, shape ``(n,)`` or ``(n, length)``.

    Returns:
        shape ``(n,)``.
    """
    losses = F.cross_entropy(outputs, targets, reduction="none")
    return losses if losses.dim() == 1 else losses.mean(1)


def bits(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every sample in bits, arguments as for :func:`cross_entropy`."""
    return cross_entropy(outputs, targets) / math.log(2)


def percent_correct(outputs: Tensor, targets: Tensor) -> Tensor:
    """100 where the largest output is the target, else 0; shapes ``(n, classes)`` and ``(n,)``."""
    return (outputs.argmax(1) == targets).float() * 100
