"""The straightened form in float64, as slow and plain as possible: the oracle of the tests.

Every symbol is a buffer of its own, x and z too, and nothing is recovered from anything else. Symbols as in
:mod:`hatam.straighten`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class StraightenedReference:
    """One parameter tensor.

    Args:
        w: the start, any shape; copied to float64.
        beta1, beta2, eps, weight_decay, gamma, modulator, averaging, memory, fade: as in
            :class:`hatam.straightened_adamw.StraightenedAdamW`.
        hidden: whether the tensor has a reach.

    Example:
        >>> import torch
        >>> from hatam.testing import StraightenedReference
        >>> reference = StraightenedReference(torch.tensor([1.0, -1.0]), weight_decay=0.0)
        >>> reference.step(torch.tensor([0.5, 0.1]), lr=0.1)
        >>> reference.x
        tensor([ 0.9000, -1.1000], dtype=torch.float64)
    """

    w: Tensor
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 1e-2
    gamma: float = 0.4
    modulator: str = "uniform"
    averaging: float = 0.0
    memory: float | None = 10.0
    fade: float = 0.1
    hidden: bool = True

    def __post_init__(self) -> None:
        self.w = self.w.detach().to(torch.float64).clone()
        self.x, self.z, self.v = self.w.clone(), self.w.clone(), torch.zeros_like(self.w)
        self.t, self.peak, self.weight_sum, self.ratio = 0, 0.0, 0.0, 0.0

    def step(self, g: Tensor, lr: float) -> None:
        """One step with the gradient ``g``, taken at ``self.w``."""
        g = g.detach().to(torch.float64)
        self.t += 1
        self.peak = max(self.peak, lr)
        weight = self.peak**2 * self.t**self.averaging
        self.weight_sum += weight

        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        h = torch.sqrt(self.v / (1 - self.beta2**self.t)) + self.eps
        self.z = self.z - lr * (g / h + self.weight_decay * self.w)
        a = self.share(weight, lr)
        self.x = (1 - a) * self.x + a * self.z

        S = torch.clamp(h / h.mean(), max=3.0) if self.modulator == "relative" else torch.ones_like(h)
        ahead = S * (self.z - self.x)
        self.w = self.x + (1 - self.beta1 + self.reach(lr)) * ahead
        self.ratio = self.measured(ahead)

    def share(self, weight: float, lr: float) -> float:
        """How much of the way to z the average goes."""
        if lr == 0 or self.weight_sum == 0:
            return 1.0
        share = weight / self.weight_sum * self.peak / lr
        if self.memory is not None:
            share = max(share, 1 / self.memory)
        return min(1.0, share)

    def reach(self, lr: float) -> float:
        """The second factor of the probe, with the ratio of the step before."""
        if not self.hidden or self.peak == 0:
            return 0.0
        return self.gamma * self.ratio * (1 - lr / self.peak) ** 2 * min(1.0, lr / (self.fade * self.peak))

    def measured(self, ahead: Tensor) -> float:
        """RMS(x) / RMS(S D), which may shrink at once and grow by 0.3% a step; 0 while there is no D."""
        rms = float(ahead.square().mean().sqrt())
        if rms == 0:
            return self.ratio
        new = float(self.x.square().mean().sqrt()) / rms
        return min(new, 1.003 * self.ratio) if self.ratio > 0 else new


@dataclass
class ReachReference:
    """One parameter tensor under :class:`hatam.reach_adamw.ReachAdamW`; symbols as in :mod:`hatam.reach`.

    Args:
        w: the start, any shape; copied to float64.
        beta1, beta2, eps, weight_decay, gamma, travel, horizon, fade: as in that class.
        hidden: whether the tensor has a reach.

    Example:
        >>> import torch
        >>> from hatam.testing import ReachReference
        >>> reference = ReachReference(torch.tensor([1.0, -1.0]), weight_decay=0.0)
        >>> reference.step(torch.tensor([0.5, 0.1]), lr=0.1)
        >>> reference.z
        tensor([ 0.9000, -1.1000], dtype=torch.float64)
    """

    w: Tensor
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 1e-2
    gamma: float = 0.2
    travel: float = 20.0
    horizon: float = 8.0
    fade: float = 0.1
    hidden: bool = True

    def __post_init__(self) -> None:
        self.w = self.w.detach().to(torch.float64).clone()
        self.z, self.m, self.v = self.w.clone(), torch.zeros_like(self.w), torch.zeros_like(self.w)
        self.t, self.peak, self.ratio, self.way = 0, 0.0, 0.0, 0.0

    def step(self, g: Tensor, lr: float) -> None:
        """One step with the gradient ``g``, taken at ``self.w``."""
        g = g.detach().to(torch.float64)
        self.t += 1
        self.peak = max(self.peak, lr)
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        h = torch.sqrt(self.v / (1 - self.beta2**self.t)) + self.eps
        m_hat = self.m / (1 - self.beta1**self.t)
        self.z = self.z - lr * (m_hat / h + self.weight_decay * self.z)

        u = self.m / h
        self.w = self.z - self.reach(lr) * u
        if self.turn(lr) == 0 and self.ratio == 0:
            return
        size, z_size = float(u.square().mean().sqrt()), float(self.z.square().mean().sqrt())
        if size > 0:
            new, first = z_size / size, self.ratio == 0
            self.ratio = new if first else min(new, 1.003 * self.ratio)
            self.way += self.t * self.peak / self.ratio if first else lr / self.ratio

    def reach(self, lr: float) -> float:
        """κ, with ρ and N of the step before."""
        come = min(1.0, max(0.0, self.way - 1) / self.travel) ** 2 if self.travel > 0 else 1.0
        return min(self.gamma * self.ratio * come * self.turn(lr), self.horizon * self.peak) if self.hidden else 0.0

    def turn(self, lr: float) -> float:
        """How much of the reach lr leaves."""
        if self.peak == 0:
            return 0.0
        return (1 - lr / self.peak) ** 2 * min(1.0, lr / (self.fade * self.peak))
