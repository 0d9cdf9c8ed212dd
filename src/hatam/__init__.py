"""HATAM: AdamW with a trajectory-aware, anisotropic correction, at one gradient a step."""

from .batch_norm import update_bn
from .following import follow
from .groups import describe, param_groups
from .handover import to_adamw
from .optimizer import HATAM
from .published import PublishedHATAM
from .version import __version__
from .wrapper import Straightened

__all__ = [
    "HATAM",
    "PublishedHATAM",
    "Straightened",
    "__version__",
    "describe",
    "follow",
    "param_groups",
    "to_adamw",
    "update_bn",
]
