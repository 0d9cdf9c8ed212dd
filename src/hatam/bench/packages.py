"""AdEMAMix of pytorch-optimizer.

Where transformers is installed, that package imports it, for one question of DeepSpeed. That takes seconds in every
process, so it does not find it here; and it is imported when it is used.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, cast

import torch

from .trainers import Trainer


@cache
def _class() -> Any:
    absent = "transformers" not in sys.modules
    if absent:
        sys.modules["transformers"] = cast(Any, None)
    try:
        from pytorch_optimizer import AdEMAMix
    finally:
        if absent:
            del sys.modules["transformers"]
    return AdEMAMix


def ademamix(params: Any, **options: Any) -> torch.optim.Optimizer:
    """AdEMAMix with the paper's decoupled weight decay, which is not the package's default.

    Raises:
        ValueError: the rates are out of range.
    """
    beta1, _, beta3 = options["betas"]
    if not 0 < beta1 <= beta3 < 1:
        raise ValueError(
            f"beta1={beta1!r} and beta3={beta3!r} are out of range: β3 grows from beta1 to beta3, so that they must be "
            "0 < beta1 <= beta3 < 1; the paper's are 0.9 and 0.9999"
        )
    params = [p[1] if isinstance(p, tuple) else p for p in params]  # the package takes no names
    return _class()(params, weight_decouple=True, **options)  # type: ignore[no-any-return]


class AdEMAMixTrainer(Trainer):
    """AdEMAMix (arXiv 2409.03137): α and β3 reach their values at the end of the run, as in its paper."""

    def arrive(self, step: int, steps: int, warmup: float, lr: float) -> None:
        super().arrive(step, steps, warmup, lr)
        for group in self.optimizer.param_groups:
            group["t_alpha_beta3"] = steps
