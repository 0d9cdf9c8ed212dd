"""The forms of HATAM that the first study compared, in float64, as slow and plain as possible: the oracle of the tests.

Every symbol is a buffer of its own, c and g_prev too; nothing is shared, carried over or rewritten by an identity.
Symbols as in :mod:`hatam.bench.first_forms`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Reference:
    """One parameter tensor under one of the forms.

    Args:
        w: the start, any shape; copied to float64.
        form: "published", "raw" or "decoupled".
        gamma, beta1, beta2, beta_c, eps, weight_decay, cap, fade, uniform: as in
            :class:`hatam.bench.first_forms.FirstHATAM`, all explicit.
        norm: what γ is in units of: None the peak lr (radius="lr"), 0 the weights (radius="relative"), or
            radius="absolute" with this ‖w_0‖ of all the optimizer's parameters.
        radius_cap: with such a norm, as there.
        numel: of all the optimizer's parameters.
    """

    w: Tensor
    form: str = "decoupled"
    gamma: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    beta_c: float = 0.9
    eps: float = 1e-8
    weight_decay: float = 1e-2
    cap: float = math.inf
    fade: float = 0.1
    uniform: bool = False
    norm: float | None = None
    radius_cap: float = math.inf
    numel: int = 1
    t: int = 0
    lr_peak: float = 0.0

    def __post_init__(self) -> None:
        self.w = self.w.detach().to(torch.float64).clone()
        self.z = self.w.clone()
        self.m, self.v, self.e, self.c, self.g_prev, self.d = (torch.zeros_like(self.w) for _ in range(6))
        self.S = torch.ones_like(self.w)
        self.mean_h = torch.tensor(math.inf)  # of the step before; there is none before the first
        self.scale = 0.0  # RMS(z) / RMS(S e / h), of the step before

    def step(self, g: Tensor, lr: float) -> None:
        """One step with the gradient ``g``, taken at ``self.w``."""
        g = g.detach().to(torch.float64)
        self.t += 1
        self.c = self.beta_c * self.c + (1 - self.beta_c) * (g - self.g_prev)
        if self.form == "decoupled":
            self.decoupled(g, lr)
        else:
            self.corrected(g, lr)
        self.g_prev = g.clone()

    def corrected(self, g: Tensor, lr: float) -> None:
        """The source document's pseudocode; "raw" caps S and builds v from g."""
        v_hat = self.v / (1 - self.beta2 ** (self.t - 1)) if self.t > 1 else self.v
        h = torch.sqrt(v_hat) + self.eps
        self.S = torch.ones_like(h) if self.uniform else torch.clamp(h / (h.mean() + self.eps), max=self.cap)
        g_hat = g + self.gamma * (self.S * self.c)
        self.m = self.beta1 * self.m + (1 - self.beta1) * g_hat
        self.v = self.beta2 * self.v + (1 - self.beta2) * (g if self.form == "raw" else g_hat) ** 2
        m_hat = self.m / (1 - self.beta1**self.t)
        v_hat = self.v / (1 - self.beta2**self.t)
        self.w = self.w - lr * (m_hat / (torch.sqrt(v_hat) + self.eps) + self.weight_decay * self.w)
        self.z = self.w.clone()

    def decoupled(self, g: Tensor, lr: float) -> None:
        """AdamW on z; the gradient was taken at w = z − d."""
        self.m = self.beta1 * self.m + (1 - self.beta1) * g
        self.v = self.beta2 * self.v + (1 - self.beta2) * g**2
        self.e = self.beta_c * self.e + (1 - self.beta_c) * g
        h = torch.sqrt(self.v / (1 - self.beta2**self.t)) + self.eps
        self.z = self.z - lr * (self.m / (1 - self.beta1**self.t) / h + self.weight_decay * self.z)
        self.lr_peak = max(self.lr_peak, lr)
        if self.norm is not None:
            held = min(1.0, lr / (self.fade * self.lr_peak)) if self.lr_peak > 0 else 0.0
            rho = (self.share_of_norm(self.norm) if self.norm else self.gamma) * held * self.scale
        else:
            rho = self.gamma * min(self.lr_peak, lr / self.fade)
        known = self.mean_h > (1 + 1e-6) * self.eps  # else no gradient has come yet
        S = torch.clamp(h / self.mean_h, max=self.cap) if known else torch.zeros_like(h)
        self.S = torch.ones_like(h) if self.uniform else S
        if self.norm is not None:
            self.scale = self.scale_of((self.S * self.e / h).square().mean().sqrt())
        self.d = rho * self.S * self.e / h
        self.w = self.z - self.d
        self.mean_h = h.mean()

    def share_of_norm(self, norm: float) -> float:
        """γ beside the norm of the weights, and no more than the cap lets the root mean square of d be."""
        furthest = self.radius_cap * self.lr_peak * self.t * math.sqrt(self.numel)
        return min(self.gamma / norm, 0.25, furthest / norm) * math.sqrt(1 - self.beta2**self.t)

    def scale_of(self, rms_u: Tensor) -> float:
        """What makes S e / h as large as the weights; for a norm it grows by 0.3% a step at most."""
        if rms_u == 0:
            return 0.0
        least = max(float(rms_u), 0.25 * math.sqrt((1 - self.beta_c) / (1 + self.beta_c)))
        new = float(self.z.square().mean().sqrt()) / least
        return min(new, 1.003 * self.scale) if self.norm and self.scale > 0 else new
