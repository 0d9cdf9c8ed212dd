"""HATAM: AdamW with a trajectory-aware, anisotropic correction, at one gradient a step."""

from .groups import describe, param_groups
from .optimizer import HATAM
from .published import PublishedHATAM
from .version import __version__

__all__ = ["HATAM", "PublishedHATAM", "__version__", "describe", "param_groups"]
