"""A plain and slow implementation of HATAM in float64, as the reference for tests.

Each symbol of the equations has its own buffer, z too. No symbol is recomputed from others.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

MODULATORS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "uniform": lambda h, mean: torch.ones_like(h),
    "relative": lambda h, mean: torch.clamp(h / mean, max=3.0),
}
"""S by name, from h and its mean one step ago, which is infinite before the first gradient."""


@dataclass
class Reference:
    """One parameter tensor under :class:`hatam.HATAM`; symbols as in :mod:`hatam.reach`.

    Args:
        w: the initial weights, of any shape; copied to float64.
        beta1, beta2, eps, weight_decay, gamma, travel, horizon, modulator, fade: see :class:`hatam.HATAM`.
        hidden: whether the tensor has a reach.

    Example:
        >>> import torch
        >>> from hatam.testing import Reference
        >>> reference = Reference(torch.tensor([1.0, -1.0]), weight_decay=0.0)
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
    travel: float = 15.0
    horizon: float = 2.0
    modulator: str = "uniform"
    fade: float = 0.1
    hidden: bool = True

    def __post_init__(self) -> None:
        self.w = self.w.detach().to(torch.float64).clone()
        self.z, self.m, self.v = self.w.clone(), torch.zeros_like(self.w), torch.zeros_like(self.w)
        self.t, self.reach_started, self.denom_mean = 0, False, math.inf
        self.peak = self.rms_ratio = self.path_length = 0.0

    def step(self, g: Tensor, lr: float) -> None:
        """Take one step with the gradient ``g`` at ``self.w``."""
        g = g.detach().to(torch.float64)
        self.count(lr)
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        h = torch.sqrt(self.v / (1 - self.beta2**self.t)) + self.eps
        m_hat = self.m / (1 - self.beta1**self.t)
        self.z = self.z - lr * (m_hat / h + self.weight_decay * self.z)

        known = self.denom_mean > (1 + 1e-6) * self.eps  # a mean of ε means v = 0, and S = 0
        S = MODULATORS[self.modulator](h, self.denom_mean if known else math.inf)
        self.displace(S * self.m / h, lr)
        if self.reach_started:
            self.denom_mean = float(h.mean())

    def count(self, lr: float) -> None:
        """Count a step, and whether there may be a reach from it on."""
        self.t += 1
        self.peak = max(self.peak, lr)
        self.reach_started = self.reach_started or self.lr_factor(lr) > 0

    def displace(self, u: Tensor, lr: float) -> None:
        """w = z − κ u, and ρ and N for the next step."""
        self.w = self.z - self.reach(lr) * u
        u_rms, z_rms = (float(x.square().mean().sqrt()) for x in (u, self.z))
        if self.reach_started and u_rms > 0:
            new, first = z_rms / u_rms, self.rms_ratio == 0
            self.rms_ratio = new if first else min(new, 1.003 * self.rms_ratio)
            self.path_length += self.t * self.peak / self.rms_ratio if first else lr / self.rms_ratio

    def reach(self, lr: float) -> float:
        """κ, with ρ and N of the step before."""
        if not self.hidden:
            return 0.0
        tau = min(1.0, max(0.0, self.path_length - 1) / self.travel) ** 2 if self.travel > 0 else 1.0
        return min(self.gamma * self.rms_ratio * tau * self.lr_factor(lr), self.horizon * self.peak)

    def lr_factor(self, lr: float) -> float:
        """The factor of κ that depends on lr: (1 − lr / peak)² min(1, lr / (fade · peak))."""
        if self.peak == 0:
            return 0.0
        return (1 - lr / self.peak) ** 2 * min(1.0, lr / (self.fade * self.peak))


@dataclass
class AroundReference(Reference):
    """One parameter tensor under :class:`hatam.Straightened`, whatever its base.

    With prescribed gradients z is where the base alone is. The arguments of AdamW's update are not used.

    Example:
        >>> import torch
        >>> from hatam.testing import AroundReference
        >>> reference = AroundReference(torch.tensor([1.0, -1.0]))
        >>> reference.follow(torch.tensor([0.5, 0.0]), lr=0.1)
        >>> reference.w
        tensor([0.5000, 0.0000], dtype=torch.float64)
    """

    def follow(self, z: Tensor, lr: float) -> None:
        """Take one step, in which the base has come to ``z``."""
        self.count(lr)
        last, self.z = self.z, z.detach().to(torch.float64).clone()
        self.displace((last - self.z) / lr if lr > 0 else torch.zeros_like(last), lr)
