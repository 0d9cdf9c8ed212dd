"""In what unit the strength γ of the decoupled form measures the displacement d = ρ S e / h.

* "absolute": the displacement of all N parameters together has the Euclidean norm γ, as SAM's perturbation has ρ. Each
  tensor has its share by its size: ρ = γ / sqrt(N) / RMS(S e / h) over the tensor (RMS: root mean square). It is a
  little less where RMS(S e / h) has just fallen, and in the first 1 / (1 − β2) steps: there it is √(1 − β2^t) of it.
* "relative": ρ = γ RMS(z) / RMS(S e / h) over the tensor, so that d is γ times as large as the weights.
* "lr": ρ is γ times the peak learning rate.

"absolute" counts the parameters of one optimizer: of several that share a network, each has γ times the square root of
its share. What is measured of a tensor is that of the step before: the pass over memory that writes it finds it for
free. All are held until lr has fallen to ``fade`` of its peak, and then run out with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor

GROWTH = 1.01  # the factor by which the scale of a careful unit may grow in a step; it may shrink at once
MEMORY = (1 + 0.9) / (1 - 0.9)  # by how much e at βc = 0.9 has less noise than a gradient, in squares


class Radius(NamedTuple):
    """One unit.

    Attributes:
        gamma: the strength unless the user gives one.
        needs_scale: whether a state keeps the scale of u = S e / h, which is a size over RMS(u).
        square: the square of that size from the number of all parameters; None where it is RMS(z) of each tensor.
        careful: whether the scale grows slowly, the radius begins small and comes to its full size as v fills, as
            √(1 − β2^t), and the default γ is smaller where the memory of e is shorter than at βc = 0.9.
    """

    gamma: float
    needs_scale: bool
    square: Callable[[int], float] | None = None
    careful: bool = False


RADII = {
    "absolute": Radius(gamma=0.7, needs_scale=True, square=lambda numel: 1 / max(numel, 1), careful=True),
    "relative": Radius(gamma=0.005, needs_scale=True),
    "lr": Radius(gamma=1.0, needs_scale=False),
}


def default_gamma(unit: Radius, beta_c: float) -> float:
    """The strength unless the user gives one. With a short memory e is mostly noise, and sharpness is held down harder.

    Example:
        >>> [round(default_gamma(RADII["absolute"], beta_c), 2) for beta_c in (0.0, 0.5, 0.8, 0.9, 0.98)]
        [0.04, 0.11, 0.33, 0.7, 0.7]
    """
    return unit.gamma * min(1.0, (1 + beta_c) / (1 - beta_c) / MEMORY) if unit.careful else unit.gamma


def numbers_in(params: Iterable[Tensor]) -> int:
    """How many real numbers parameters have; a complex one is two."""
    return sum(p.numel() * (2 if p.is_complex() else 1) for p in params)
