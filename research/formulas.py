"""What the theory says, as formulas; ``docs/theory.md`` derives them and holds them against measurements.

Symbols as in ``docs/algorithm.md``. ω is an angular frequency per step, π an oscillation that turns at every step.
"""

from __future__ import annotations

import cmath
import math

import torch
from torch import Tensor


def averages(x: Tensor, beta: float) -> Tensor:
    """The EMA at rate β along the first dimension, from 0, without bias correction.

    Example:
        >>> averages(torch.tensor([1.0, 1.0]), beta=0.5)
        tensor([0.5000, 0.7500])
    """
    made, last = [], torch.zeros_like(x[0])
    for u in x:
        last = beta * last + (1 - beta) * u
        made.append(last)
    return torch.stack(made)


def bend(gradients: Tensor, beta_c: float) -> Tensor:
    """c by its definition: the EMA at rate βc of g_t − g_{t−1}, from g_0 = c_0 = 0.

    Example:
        >>> bend(torch.tensor([1.0, 1.0]), beta_c=0.5)
        tensor([0.5000, 0.2500])
    """
    return averages(torch.diff(gradients, dim=0, prepend=torch.zeros_like(gradients[:1])), beta_c)


def bend_in_one_buffer(gradients: Tensor, beta_c: float) -> Tensor:
    """c as the optimizer has it: (1 − βc)(g_t − e_{t−1}) with e the EMA of g, one buffer instead of two.

    Example:
        >>> bend_in_one_buffer(torch.tensor([1.0, 1.0]), beta_c=0.5)
        tensor([0.5000, 0.2500])
    """
    e = averages(gradients, beta_c)
    return (1 - beta_c) * (gradients - torch.cat([torch.zeros_like(e[:1]), e[:-1]]))


def transfer(omega: float, beta_c: float) -> complex:
    """What the bend makes of an oscillation of the gradient: C = (1 − βc)(1 − e^{−iω}) / (1 − βc e^{−iω}).

    0 at ω = 0, where nothing bends, and 2(1 − βc)/(1 + βc) at ω = π.

    Example:
        >>> abs(transfer(0.0, 0.9)), round(abs(transfer(math.pi, 0.9)), 4)
        (0.0, 0.1053)
    """
    turn = cmath.exp(-1j * omega)
    return (1 - beta_c) * (1 - turn) / (1 - beta_c * turn)


def edge(beta1: float) -> float:
    """The largest stable lr · λ_max(G P⁻¹H): (2 + 2β1) / (1 − β1), with G = 1 for Adam.

    Example:
        >>> round(edge(0.9), 3)
        38.0
    """
    return (2 + 2 * beta1) / (1 - beta1)


def gain_of_correction(gamma_s: float, beta_c: float) -> float:
    """G of ĝ = g + γ S c: 1 + γ S |C(π)|, since the fastest oscillation turns at every step.

    Example:
        >>> round(gain_of_correction(10.0, 0.9), 3)
        2.053
    """
    return 1 + gamma_s * abs(transfer(math.pi, beta_c))


def gain_of_reach(kappa: float, lr: float) -> float:
    """G of a gradient taken at w = z − κ m / h: 1 + 2κ / lr. A reach of κ counts as 2κ more of lr.

    Example:
        >>> gain_of_reach(0.004, 0.001)
        9.0
    """
    return 1 + 2 * kappa / lr


def inflation(s: float, gamma: float, beta_c: float) -> float:
    """RMS(ĝ) / RMS(g) of white noise under a modulator s: sqrt((1 + k s)² + k² s² (1 − βc)/(1 + βc)), k = γ(1 − βc).

    Example:
        >>> inflation(0.0, 1.0, 0.9), round(inflation(10.0, 1.0, 0.9), 3)
        (1.0, 2.013)
    """
    k = gamma * (1 - beta_c)
    return math.sqrt((1 + k * s) ** 2 + (k * s) ** 2 * (1 - beta_c) / (1 + beta_c))


def fixed_point(noise: float, gamma: float, beta_c: float) -> float:
    """S of a coordinate of the published form at rest, in pure noise; infinite where it runs away.

    S = (σ/M) · inflation(S), with M the mean of h over the tensor. There is a solution while
    σ/M < 1 / (k sqrt(2 / (1 + βc))), k = γ(1 − βc).

    Args:
        noise: σ/M, the coordinate's standard deviation over the mean of h, >= 0.
        gamma: of the form, >= 0.
        beta_c: of the form, in [0, 1).

    Example:
        >>> fixed_point(0.5, 0.0, 0.9), round(fixed_point(0.5, 1.0, 0.9), 3), fixed_point(20.0, 1.0, 0.9)
        (0.5, 0.526, inf)
    """
    k = gamma * (1 - beta_c)
    # S²(1 − r² k² (1 + κ)) − 2 r² k S − r² = 0 with r = σ/M and κ = (1 − βc)/(1 + βc), so that 1 + κ = 2/(1 + βc)
    a = 1 - (noise * k) ** 2 * 2 / (1 + beta_c)
    if a <= 0:
        return math.inf
    b = noise**2 * k
    return (b + math.sqrt(b**2 + a * noise**2)) / a
