"""Optimizers of pytorch-optimizer.

Where transformers is installed, that package imports it, for one question of DeepSpeed. That takes seconds in every
process, so it does not find it here.
"""

from __future__ import annotations

import sys
from typing import Any, cast

_absent = "transformers" not in sys.modules
if _absent:
    sys.modules["transformers"] = cast(Any, None)
try:
    from pytorch_optimizer import SAM, AdaBelief, Adan, AdEMAMix, Lion
finally:
    if _absent:
        del sys.modules["transformers"]

__all__ = ["SAM", "AdEMAMix", "AdaBelief", "Adan", "Lion"]
