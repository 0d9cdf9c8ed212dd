"""In what unit the strength γ of the decoupled form measures the displacement d = ρ S e / h.

* "lr": ρ is γ times the peak learning rate.
* "relative": ρ = γ RMS(z) / RMS(S e / h) over the tensor, so that d is γ times as large as the weights, by the root
  mean square (RMS). Both are those of the step before: the pass over memory that writes them finds them for free.

Either is held until lr has fallen to ``fade`` of its peak, and then runs out with it.
"""

from __future__ import annotations

from typing import NamedTuple


class Radius(NamedTuple):
    """One unit.

    Attributes:
        gamma: the strength unless the user gives one.
        needs_scale: whether a state keeps RMS(z) / RMS(S e / h).
    """

    gamma: float
    needs_scale: bool


RADII = {"lr": Radius(gamma=1.0, needs_scale=False), "relative": Radius(gamma=0.005, needs_scale=True)}
