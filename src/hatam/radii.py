"""In what unit the strength γ of the decoupled form measures the displacement d = ρ S e / h.

* "absolute": at the start of training the displacement of all parameters together has the Euclidean norm γ, as SAM's
  perturbation has ρ; from then on it grows with the weights. ρ = min(γ / ‖w_0‖, 1/4) RMS(z) / RMS(S e / h) over each
  tensor (RMS: root mean square), with ‖w_0‖ the norm of all that the optimizer was given. It is less in the first
  1 / (1 − β2) steps, √(1 − β2^t) of it, and wherever RMS(z) / RMS(S e / h) has just grown, which it follows by 0.3% a
  step: a tensor that begins at zero is hardly displaced for a thousand steps. Where γ is the default, the root mean
  square of d is also at most 2% of lr_peak · t, the furthest that t steps of Adam may have gone.
* "relative": ρ = γ RMS(z) / RMS(S e / h), so that d is γ times as large as each tensor's weights.
* "lr": ρ is γ times the peak learning rate.

"absolute" counts the parameters of one optimizer: of several that share a network, each displaces by its whole γ.
What is measured of a tensor is that of the step before: the pass over memory that writes it finds it for free.
All are held until lr has fallen to ``fade`` of its peak, and then run out with it.
"""

from __future__ import annotations

import math
from typing import NamedTuple

GROWTH = 1.003  # the factor by which the scale of a norm may grow in a step; it may shrink at once
LARGEST = 0.25  # of the weights: the largest share, however small the weights that training began with


class Start(NamedTuple):
    """What is known of all parameters of an optimizer as its training starts."""

    norm: float  # ‖w_0‖
    numel: int


class Radius(NamedTuple):
    """One unit.

    Attributes:
        gamma: the strength unless the user gives one.
        needs_scale: whether a state keeps the scale of u = S e / h, which is RMS(z) / RMS(u).
        is_norm: whether γ is the norm over all parameters, and not a share of each tensor's. Then the scale grows
            slowly, and the radius begins small and comes to its full size as v fills, as √(1 − β2^t).
        spiky: the strength unless the user gives one where a lone spike of the gradient displaces more than twice as
            far as noise does: √((1 − βc²) / (1 − β2)) as far, since the size of u is one step old.
        cap: of the radius where the user gives no strength, as a share of lr_peak · t; see :func:`hatam.options.pace`.
    """

    gamma: float
    needs_scale: bool
    is_norm: bool = False
    spiky: float | None = None
    cap: float = math.inf

    def default(self, beta_c: float, beta2: float) -> float:
        """The strength unless the user gives one."""
        return self.gamma if self.spiky is None or 1 - beta_c**2 <= 4 * (1 - beta2) else self.spiky


RADII = {
    "absolute": Radius(0.5, needs_scale=True, is_norm=True, spiky=0.35, cap=0.02),
    "relative": Radius(gamma=0.005, needs_scale=True),
    "lr": Radius(gamma=1.0, needs_scale=False),
}


def share(gamma: float, start: Start | None) -> float:
    """How large a displacement of the norm γ is beside the first weights; 0 where these are not known."""
    if start is None:
        return 0.0
    return min(gamma / start.norm, LARGEST) if start.norm > 0 else LARGEST
