"""HATAM: AdamW with a trajectory-aware, anisotropic correction, at one gradient a step."""

from .forms import PUBLISHED_FORM
from .groups import describe, param_groups
from .optimizer import HATAM
from .version import __version__

__all__ = ["HATAM", "PUBLISHED_FORM", "__version__", "describe", "param_groups"]
