"""How a contender's trainer is built from its options."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pytorch_optimizer import SAM, AdaBelief, Adan, Lion
from schedulefree import AdamWScheduleFreePaper
from torch import nn

from hatam import HATAM

from .averaged import EMATrainer, ScheduleFreeTrainer
from .mars import MARS
from .sam import ASAM, MSAM, KSAMTrainer, MSAMTrainer, SAMTrainer
from .trainers import HATAMTrainer, Loss, Trainer

Options = dict[str, Any]
Train = Callable[[nn.Module, Loss, Options], Trainer]


def torch_arguments(options: Options) -> dict[str, Any]:
    """torch's name for the rates of the moments; the other options pass as they are."""
    betas = tuple(options[key] for key in ("beta1", "beta2", "beta3") if key in options)
    rest = {key: value for key, value in options.items() if key not in ("beta1", "beta2", "beta3")}
    return {**rest, "betas": betas}


def with_optimizer(
    make: Callable[..., torch.optim.Optimizer], trainer: Callable[..., Trainer] = Trainer, own: tuple[str, ...] = ()
) -> Train:
    """For a contender that is an optimizer of torch's face and a trainer.

    Args:
        make: builds the optimizer from the parameters and the options.
        trainer: builds the trainer from the model, the loss, the optimizer and its own options.
        own: names of the trainer's own options.
    """

    def train(model: nn.Module, loss: Loss, options: Options) -> Trainer:
        rest = {key: value for key, value in options.items() if key not in own}
        optimizer = make(model.parameters(), **torch_arguments(rest))
        return trainer(model, loss, optimizer, **{key: options[key] for key in own})

    return train


ADAMW: Callable[..., torch.optim.Optimizer] = partial(torch.optim.AdamW, fused=True)
SAM_ON_ADAMW: Callable[..., SAM] = partial(SAM, base_optimizer=torch.optim.AdamW, fused=True)

adamw = with_optimizer(ADAMW)
adamw_ema = with_optimizer(ADAMW, EMATrainer, own=("decay",))
schedule_free = with_optimizer(AdamWScheduleFreePaper, ScheduleFreeTrainer)
nadam = with_optimizer(partial(torch.optim.NAdam, decoupled_weight_decay=True))
adabelief = with_optimizer(partial(AdaBelief, weight_decouple=True, rectify=False))
adan = with_optimizer(Adan)
mars = with_optimizer(partial(MARS, fused=True))
lion = with_optimizer(Lion)
hatam = with_optimizer(HATAM, HATAMTrainer)
sam = with_optimizer(SAM_ON_ADAMW, SAMTrainer)
k_sam = with_optimizer(SAM_ON_ADAMW, KSAMTrainer, own=("k_fraction",))
msam = with_optimizer(partial(MSAM, fused=True), MSAMTrainer)


def asam(model: nn.Module, loss: Loss, options: Options) -> Trainer:
    """ASAM, which treats weights and biases differently and so needs their names."""
    made = ASAM(model.named_parameters(), torch.optim.AdamW, fused=True, **torch_arguments(options))
    return SAMTrainer(model, loss, made)


def sgd(model: nn.Module, loss: Loss, options: Options) -> Trainer:
    """torch's SGD with Nesterov's momentum; without momentum there is nothing to look ahead along."""
    optimizer = torch.optim.SGD(model.parameters(), fused=True, nesterov=options["momentum"] > 0, **options)
    return Trainer(model, loss, optimizer)
