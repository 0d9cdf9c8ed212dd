"""The theory held against measurements: one check for each statement of ``docs/theory.md``."""

from __future__ import annotations

from .check import Check
from .curvature import PROXY, QUASI_NEWTON
from .edge import CEILING, EDGE
from .feedback import FEEDBACK
from .linear import DAMPING, IDENTITY
from .probing import EXCHANGE, RADIUS, TRACE
from .reach import REACH

CHECKS: dict[str, Check] = {
    check.name: check
    for check in (
        IDENTITY,
        DAMPING,
        QUASI_NEWTON,
        PROXY,
        EXCHANGE,
        RADIUS,
        TRACE,
        EDGE,
        CEILING,
        FEEDBACK,
        REACH,
    )
}
"""By name, in the order of the page."""

__all__ = ["CHECKS", "Check"]
