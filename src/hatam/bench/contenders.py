"""The contenders: a name, the options that it takes with their defaults and search ranges, and how it trains.

On the command line ``hatam:gamma=0.1,lr=0.01`` is the contender ``hatam`` with two options changed.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn

from hatam import HATAM, PublishedHATAM

from .averaged import GPA, EMANesterovTrainer, EMATrainer, ScheduleFree
from .packages import AdEMAMixTrainer, ademamix
from .sam import MSAM, SAM, KSAMTrainer, LateSAMTrainer
from .schedules import SCHEDULES
from .spaces import Factor, Range, Rate, Space, choices
from .tasks import all_tasks, find
from .trainers import Loss, Trainer

Options: TypeAlias = dict[str, Any]
MakeOptimizer: TypeAlias = Callable[..., torch.optim.Optimizer]

ADAMW_OPTIONS: Options = {"lr": 0.03, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.15}
DECAYING = choices("cosine", "late")


@dataclass(frozen=True)
class Contender:
    """One way to train.

    Attributes:
        name: how the command line calls it.
        summary: one line for lists and tables.
        source: where it was published.
        optimizer: builds the optimizer from named parameters and torch's options.
        options: the options beyond AdamW's, with their defaults; ``schedule`` among them.
        space: the search ranges of its own options, and of AdamW's where they differ from everyone's.
        trainer: builds the trainer from model, loss, optimizer and the trainer's own options.
        of_trainer: names of the trainer's own options.
        gradients: per step, nominally; the measured number is in the records.
    """

    name: str
    summary: str
    source: str
    optimizer: MakeOptimizer
    options: Options = field(default_factory=dict)
    space: Mapping[str, Space] = field(default_factory=dict)
    trainer: Callable[..., Trainer] = Trainer
    of_trainer: tuple[str, ...] = ()
    gradients: float = 1.0

    @property
    def every(self) -> Options:
        """All options with their defaults."""
        return {**ADAMW_OPTIONS, "schedule": "cosine", **self.options}

    def make(self, params: Iterable[Any], options: Options) -> torch.optim.Optimizer:
        """The optimizer alone."""
        rest = {key: value for key, value in options.items() if key not in ("schedule", *self.of_trainer)}
        betas = tuple(rest.pop(key) for key in ("beta1", "beta2", "beta3") if key in rest)
        return self.optimizer(params, betas=betas, **rest)

    def train(self, model: nn.Module, loss: Loss, options: Options) -> Trainer:
        """Its trainer, with the schedule of the options."""
        optimizer = self.make(model.named_parameters(), options)
        trainer = self.trainer(model, loss, optimizer, **{key: options[key] for key in self.of_trainer})
        trainer.schedule = SCHEDULES[options["schedule"]]
        return trainer


FUSED = partial(torch.optim.AdamW, fused=True)
FUSED_SAM = partial(SAM, fused=True)
RHO = Range(0.01, 2.0)
SEED_DOCUMENT = "the source document"
PUBLISHED: Options = {"gamma": 1.0, "beta_c": 0.9}
REACH: Options = {"gamma": 0.2, "travel": 15.0, "horizon": 2.0, "fade": 0.1}
REACH_SPACE = {"gamma": Range(0.02, 2.0), "horizon": Range(0.5, 16.0)}

CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        Contender("adamw", "AdamW", "arXiv 1711.05101", FUSED),
        Contender(
            "adamw-ema",
            "AdamW, evaluated at the exponential moving average of its weights",
            "arXiv 1803.05407",
            FUSED,
            {"decay": 0.99},
            {"decay": Rate(0.9, 0.999), "schedule": choices("cosine", "late", "constant")},
            EMATrainer,
            ("decay",),
        ),
        Contender("sam", "SAM on AdamW", "arXiv 2010.01412", FUSED_SAM, {"rho": 0.05}, {"rho": RHO}, gradients=2.0),
        Contender(
            "late-sam",
            "SAM on AdamW in the last tenth of the steps, AdamW before",
            "arXiv 2410.10373",
            FUSED_SAM,
            {"rho": 0.05, "share": 0.1},
            {"rho": RHO},
            LateSAMTrainer,
            ("share",),
            gradients=1.1,
        ),
        Contender(
            "k-sam",
            "SAM on the half of the batch with the highest losses",
            "arXiv 2210.12864",
            FUSED_SAM,
            {"rho": 0.05, "k_fraction": 0.5},
            {"rho": RHO},
            KSAMTrainer,
            ("k_fraction",),
        ),
        Contender(
            "msam",
            "probing with the momentum, at w − ρ m / ‖m‖",
            "arXiv 2401.12033",
            partial(MSAM, fused=True),
            {"rho": 0.3},
            {"rho": Range(0.03, 6.0), "beta1": Rate(0.5, 0.98)},
        ),
        Contender(
            "schedule-free",
            "Schedule-Free AdamW: lr stays at its peak, evaluated at an average of the weights",
            "arXiv 2405.15682",
            ScheduleFree,
            {"r": 0.0, "schedule": "constant"},
            {"r": Range(0.0, 8.0, log=False), "beta1": Rate(0.5, 0.98), "schedule": choices("constant")},
        ),
        Contender(
            "gpa",
            "AdamW at an interpolation of its iterate and an exponential moving average, evaluated at the average",
            "arXiv 2512.17131",
            partial(GPA, fused=True),
            {"mu_x": 0.99, "mu_y": 0.7},
            {"mu_x": Rate(0.9, 0.9967), "mu_y": Range(0.3, 0.95, log=False)},
        ),
        Contender(
            "ema-nesterov",
            "AdamW from a point ahead along the exponential moving average of its displacements",
            "arXiv 2605.25395",
            FUSED,
            {"ahead": 0.5, "decay": 0.99, "rest": 0.1},
            {"ahead": Range(0.1, 2.0), "decay": Rate(0.9, 0.99)},
            EMANesterovTrainer,
            ("ahead", "decay", "rest"),
        ),
        Contender(
            "ademamix",
            "AdamW with a second, slower momentum; its weight and its memory grow over the run",
            "arXiv 2409.03137",
            ademamix,
            {"beta3": 0.999, "alpha": 5.0},
            {"beta3": Rate(0.99, 0.9999), "alpha": Range(1.0, 10.0), "beta1": Rate(0.5, 0.98)},
            AdEMAMixTrainer,
        ),
        Contender(
            "atam",
            "isotropic straightening of the trajectory, ĝ = g + γ c",
            SEED_DOCUMENT,
            partial(PublishedHATAM, modulator="uniform"),
            PUBLISHED,
            {"gamma": Range(0.1, 10.0), "beta_c": Rate(0.5, 0.97)},
        ),
        Contender(
            "hatam-published",
            "HATAM, the source document's pseudocode",
            SEED_DOCUMENT,
            PublishedHATAM,
            PUBLISHED,
            {"gamma": Range(0.1, 10.0), "beta_c": Rate(0.5, 0.97)},
        ),
        Contender(
            "hatam",
            "HATAM: AdamW whose gradient is taken ahead of its iterate once lr falls from its peak",
            SEED_DOCUMENT,
            partial(HATAM, fused=True),
            REACH,
            REACH_SPACE,
        ),
        Contender(
            "hatam-relative",
            "HATAM with the modulator: further ahead where a coordinate is sharp",
            SEED_DOCUMENT,
            partial(HATAM, fused=True, modulator="relative"),
            REACH,
            REACH_SPACE,
        ),
    )
}

SHARED_SPACE: Mapping[str, Space] = {
    "lr": Factor(8),
    "weight_decay": Factor(10),
    "beta1": Rate(0.0, 0.98),
    "schedule": DECAYING,
}
"""Search ranges of everyone's options. lr and weight decay are around the task's usual values for AdamW."""


def space(contender: str, task: str) -> dict[str, Space]:
    """The search space of a contender on a task, by option; every other option keeps its default.

    Example:
        >>> sorted(space("sam", "mnist1d-mlp"))
        ['beta1', 'lr', 'rho', 'schedule', 'weight_decay']
        >>> space("sam", "mnist1d-mlp")["lr"]
        Range(low=0.00375, high=0.24, log=True)
    """
    usual = parse(contender, task)[1]
    found = {**SHARED_SPACE, **CONTENDERS[contender].space}
    return {key: each.around(usual[key]) if isinstance(each, Factor) else each for key, each in found.items()}


def parse(spec: str, task: str) -> tuple[Contender, Options]:
    """``name`` or ``name:option=value,…`` as a contender and its complete options on a task.

    Raises:
        ValueError: no such contender, option or schedule; the message suggests the nearest name.

    Example:
        >>> contender, options = parse("hatam:gamma=0.1", "mnist1d-mlp")
        >>> contender.name, options["gamma"], options["horizon"]
        ('hatam', 0.1, 2.0)
    """
    name, _, changes = spec.partition(":")
    contender = CONTENDERS[known(name, CONTENDERS, "contender")]
    options = contender.every
    of_task = find(task).options if task in all_tasks() or ":" in task else {}
    for key, value in of_task.items():
        options[known(key, options, f"option of task {task}")] = value
    for key, value in changed(spec, filter(None, changes.split(","))).items():
        options[known(key, contender.every, f"option of {name}")] = value
    known(str(options["schedule"]), SCHEDULES, "schedule")
    return contender, options


def changed(spec: str, changes: Iterable[str]) -> Options:
    """The options that a spec changes, from its parts.

    Raises:
        ValueError: one is not of the form option=value.
    """
    found: Options = {}
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"{change!r} in {spec!r} is not of the form option=value")
        found[key.strip()] = value_of(text.strip())
    return found


def value_of(text: str) -> Any:
    """A Python literal, ``inf``, or else the text itself."""
    if text == "inf":
        return math.inf
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def known(name: str, names: Iterable[str], kind: str) -> str:
    """``name`` if it is one of ``names``, else an error that suggests the nearest."""
    names = list(names)
    if name in names:
        return name
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    raise ValueError(f"unknown {kind} {name!r}.{hint} There are: {', '.join(names)}")
