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


class Radius(NamedTuple):
    """One unit.

    Attributes:
        gamma: the strength unless the user gives one.
        needs_scale: whether a state keeps the scale of u = S e / h, which is a size over RMS(u).
        square: the square of that size from the number of all parameters; None where it is RMS(z) of each tensor.
        careful: whether the scale grows slowly, and the radius begins small and comes to its full size as v fills, as
            √(1 − β2^t).
        short: the strength unless the user gives one where βc < 0.9: such an e is mostly the noise of a few gradients.
    """

    gamma: float
    needs_scale: bool
    square: Callable[[int], float] | None = None
    careful: bool = False
    short: float | None = None

    def default(self, beta_c: float) -> float:
        """The strength unless the user gives one."""
        return self.gamma if self.short is None or beta_c >= 0.9 else self.short


RADII = {
    "absolute": Radius(0.7, needs_scale=True, square=lambda numel: 1 / max(numel, 1), careful=True, short=0.2),
    "relative": Radius(gamma=0.005, needs_scale=True),
    "lr": Radius(gamma=1.0, needs_scale=False),
}


def numbers_in(params: Iterable[Tensor]) -> int:
    """How many real numbers parameters have; a complex one is two."""
    return sum(p.numel() * (2 if p.is_complex() else 1) for p in params)
