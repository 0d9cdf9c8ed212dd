"""Registers HATAM in timm as "hatam".

After this module is imported, ``timm.optim.create_optimizer_v2(model, opt="hatam")`` and ``--opt hatam`` of timm's
scripts make a HATAM with timm's parameter groups.
"""

from __future__ import annotations

from timm.optim._optim_factory import OptimInfo, default_registry

from ..optimizer import HATAM

default_registry.register(
    OptimInfo(name="hatam", opt_class=HATAM, description="AdamW with a late reach", has_betas=True)
)
