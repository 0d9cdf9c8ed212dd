"""The contenders: a name, the options that it takes with their defaults, and how it trains.

On the command line ``hatam:gamma=2,lr=0.01`` is the contender ``hatam`` with two options changed.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from pytorch_optimizer import SAM
from torch import nn

from hatam import HATAM

from .tasks import all_tasks
from .trainers import MSAM, HATAMTrainer, KSAMTrainer, Loss, MSAMTrainer, SAMTrainer, Trainer

Options = dict[str, Any]

ADAMW_OPTIONS: Options = {"lr": 0.03, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.15}


@dataclass(frozen=True)
class Contender:
    """One way to train.

    Attributes:
        name: how the command line calls it.
        summary: one line for lists and tables.
        source: where it was published.
        train: builds its trainer from a model, a loss per sample and its options.
        options: every option that it takes, with its default.
        by_task: defaults that differ on a task.
    """

    name: str
    summary: str
    source: str
    train: Callable[[nn.Module, Loss, Options], Trainer]
    options: Options
    by_task: Mapping[str, Options] = field(default_factory=dict)


def adamw_arguments(options: Options) -> dict[str, Any]:
    """torch's names for the options that all contenders share; the others pass as they are."""
    rest = {key: value for key, value in options.items() if key not in ("beta1", "beta2")}
    return {**rest, "betas": (options["beta1"], options["beta2"])}


def train_adamw(model: nn.Module, loss: Loss, options: Options) -> Trainer:
    return Trainer(model, loss, torch.optim.AdamW(model.parameters(), fused=True, **adamw_arguments(options)))


def train_hatam(model: nn.Module, loss: Loss, options: Options) -> Trainer:
    return HATAMTrainer(model, loss, HATAM(model.parameters(), **adamw_arguments(options)))


def train_sam(model: nn.Module, loss: Loss, options: Options) -> Trainer:
    return SAMTrainer(model, loss, SAM(model.parameters(), torch.optim.AdamW, fused=True, **adamw_arguments(options)))


def train_ksam(model: nn.Module, loss: Loss, options: Options) -> Trainer:
    arguments = adamw_arguments(options)
    k_fraction = arguments.pop("k_fraction")
    return KSAMTrainer(
        model, loss, SAM(model.parameters(), torch.optim.AdamW, fused=True, **arguments), k_fraction=k_fraction
    )


def train_msam(model: nn.Module, loss: Loss, options: Options) -> Trainer:
    return MSAMTrainer(model, loss, MSAM(model.parameters(), fused=True, **adamw_arguments(options)))


def hatam_options(form: str, **changed: Any) -> Options:
    """AdamW's options and HATAM's own; None leaves a default to the form."""
    own: Options = {
        "gamma": 1.0,
        "beta_c": None,
        "modulator": "relative",
        "modulator_cap": None,
        "form": form,
        "fade": None,
        "foreach": None,
    }
    return {**ADAMW_OPTIONS, **own, **changed}


SEED_DOCUMENT = "the source document"

CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        Contender("adamw", "AdamW", "arXiv 1711.05101", train_adamw, ADAMW_OPTIONS),
        Contender(
            "adamw-no-momentum",
            "AdamW at β1 = 0, its better setting on the MLPs",
            "arXiv 1711.05101",
            train_adamw,
            {**ADAMW_OPTIONS, "beta1": 0.0},
        ),
        Contender(
            "sam",
            "SAM on AdamW, at β1 = 0 on the MLPs",
            "arXiv 2010.01412",
            train_sam,
            {**ADAMW_OPTIONS, "beta1": 0.0, "rho": 0.5},
            by_task={"mnist1d-conv": {"beta1": 0.9, "rho": 0.05}},
        ),
        Contender(
            "k-sam",
            "SAM on the half of the batch with the highest losses",
            "arXiv 2210.12864",
            train_ksam,
            {**ADAMW_OPTIONS, "beta1": 0.0, "rho": 0.2, "k_fraction": 0.5},
            by_task={"mnist1d-conv": {"beta1": 0.9, "rho": 0.05}},
        ),
        Contender(
            "msam",
            "probing with the momentum, at w − ρ m / ‖m‖",
            "arXiv 2401.12033",
            train_msam,
            {**ADAMW_OPTIONS, "rho": 2.0},
            by_task={"mnist1d-conv": {"rho": 0.3}},
        ),
        Contender(
            "atam",
            "isotropic straightening of the trajectory, ĝ = g + γ c",
            SEED_DOCUMENT,
            train_hatam,
            hatam_options("published", modulator="uniform"),
        ),
        Contender(
            "atam-decoupled",
            "isotropic straightening with a radius that outlives lr",
            SEED_DOCUMENT,
            train_hatam,
            hatam_options("decoupled", modulator="uniform", gamma=3.0),
        ),
        Contender(
            "hatam-published",
            "HATAM, the source document's pseudocode",
            SEED_DOCUMENT,
            train_hatam,
            hatam_options("published"),
        ),
        Contender(
            "hatam-raw",
            "HATAM with v from the raw gradient and a cap",
            SEED_DOCUMENT,
            train_hatam,
            hatam_options("raw"),
        ),
        Contender(
            "hatam",
            "HATAM, decoupled",
            SEED_DOCUMENT,
            train_hatam,
            hatam_options("decoupled"),
            by_task={"mnist1d-mlp-plain": {"gamma": 7.0}, "mnist1d-conv": {"gamma": 2.0}},
        ),
    )
}


def parse(spec: str, task: str) -> tuple[Contender, Options]:
    """``name`` or ``name:option=value,…`` as a contender and its complete options on a task.

    Raises:
        ValueError: no such contender or option; the message suggests the nearest name.

    Example:
        >>> contender, options = parse("hatam:gamma=2", "mnist1d-mlp")
        >>> contender.name, options["gamma"], options["form"]
        ('hatam', 2, 'decoupled')
    """
    name, _, changes = spec.partition(":")
    contender = CONTENDERS[known(name, CONTENDERS, "contender")]
    of_task = all_tasks()[task].options if task in all_tasks() else {}
    shared = {key: value for key, value in of_task.items() if key in contender.options}
    options = {**contender.options, **shared, **contender.by_task.get(task, {})}
    for change in filter(None, changes.split(",")):
        key, equals, text = change.partition("=")
        if not equals:
            raise ValueError(f"{change!r} in {spec!r} is not of the form option=value")
        options[known(key.strip(), options, f"option of {name}")] = value_of(text.strip())
    return contender, options


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
