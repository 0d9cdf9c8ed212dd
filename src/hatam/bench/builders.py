"""How a contender's trainer is built from its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from schedulefree import AdamWScheduleFreePaper
from torch import nn

from hatam import HATAM, PublishedHATAM

from .averaged import GPA, EMANesterovTrainer, EMATrainer, GPATrainer, ScheduleFreeTrainer
from .mars import MARS
from .packages import SAM, AdaBelief, Adan, AdEMAMix, Lion
from .sam import ASAM, MSAM, KSAMTrainer, LateSAMTrainer, MSAMTrainer, SAMTrainer
from .schedules import SCHEDULES
from .trainers import AdEMAMixTrainer, HATAMTrainer, Loss, Trainer

Options = dict[str, Any]
Train = Callable[[nn.Module, Loss, Options], Trainer]


@dataclass(frozen=True)
class Contender:
    """One way to train.

    Attributes:
        name: how the command line calls it.
        summary: one line for lists and tables.
        source: where it was published.
        build: makes its trainer from a model, a loss per sample and its options.
        options: the options that it takes, with their defaults, but for ``schedule`` and ``later``.
        by_task: defaults that differ on a task.
        scaled: options on a scale of its own, which keep their ratio to AdamW's where a task asks for another of these.
        schedule: of lr, where the option ``schedule``, which every contender takes, does not name another.
        later: options that came when there were records already, with their defaults.
    """

    name: str
    summary: str
    source: str
    build: Train
    options: Options
    by_task: Mapping[str, Options] = field(default_factory=dict)
    scaled: tuple[str, ...] = ()
    schedule: str = "cosine"
    later: Options = field(default_factory=dict)

    @property
    def every(self) -> Options:
        """Every option that it takes, with its default."""
        return {**self.options, **self.later, "schedule": self.schedule}

    def recorded(self, options: Options) -> Options:
        """Options as a run has them: what older records do not name is left out at its default, so that these are still
        found."""
        absent = {key: default for key, default in self.every.items() if key not in self.options}
        return {key: value for key, value in options.items() if key not in absent or value != absent[key]}

    def train(self, model: nn.Module, loss: Loss, options: Options) -> Trainer:
        """Its trainer, with the schedule that the options ask for."""
        trainer = self.build(model, loss, {key: value for key, value in options.items() if key != "schedule"})
        trainer.schedule = SCHEDULES[options.get("schedule", self.schedule)]
        return trainer


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
gpa = with_optimizer(partial(GPA, fused=True), GPATrainer)
ema_nesterov = with_optimizer(ADAMW, EMANesterovTrainer, own=("ahead", "decay", "rest"))
nadam = with_optimizer(partial(torch.optim.NAdam, decoupled_weight_decay=True))
adabelief = with_optimizer(partial(AdaBelief, weight_decouple=True, rectify=False))
ademamix = with_optimizer(partial(AdEMAMix, weight_decouple=True), AdEMAMixTrainer)
adan = with_optimizer(Adan)
mars = with_optimizer(partial(MARS, fused=True))
lion = with_optimizer(Lion)
published = with_optimizer(PublishedHATAM)
sam = with_optimizer(SAM_ON_ADAMW, SAMTrainer)
late_sam = with_optimizer(SAM_ON_ADAMW, LateSAMTrainer, own=("share",))
k_sam = with_optimizer(SAM_ON_ADAMW, KSAMTrainer, own=("k_fraction",))
msam = with_optimizer(partial(MSAM, fused=True), MSAMTrainer)


def asam(model: nn.Module, loss: Loss, options: Options) -> Trainer:
    """ASAM, which treats weights and biases differently and so needs their names."""
    made = ASAM(model.named_parameters(), torch.optim.AdamW, fused=True, **torch_arguments(options))
    return SAMTrainer(model, loss, made)


def hatam(model: nn.Module, loss: Loss, options: Options) -> Trainer:
    """HATAM, which tells by their names which parameters are embeddings."""
    return HATAMTrainer(model, loss, HATAM(model.named_parameters(), fused=True, **torch_arguments(options)))


def sgd(model: nn.Module, loss: Loss, options: Options) -> Trainer:
    """torch's SGD with Nesterov's momentum; without momentum there is nothing to look ahead along."""
    optimizer = torch.optim.SGD(model.parameters(), fused=True, nesterov=options["momentum"] > 0, **options)
    return Trainer(model, loss, optimizer)
