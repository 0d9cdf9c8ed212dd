"""The contenders: a name, the options that it takes with their defaults, and how it trains.

On the command line ``hatam:gamma=0.1,lr=0.01`` is the contender ``hatam`` with two options changed.
"""

from __future__ import annotations

import ast
import difflib
import math
from collections.abc import Iterable
from typing import Any

from . import builders
from .builders import Contender, Options
from .schedules import SCHEDULES
from .tasks import all_tasks, find

ADAMW_OPTIONS: Options = {"lr": 0.03, "beta1": 0.9, "beta2": 0.95, "eps": 1e-8, "weight_decay": 0.15}


SEED_DOCUMENT = "the source document"
MLPS = ("mnist1d-mlp", "mnist1d-mlp-plain", "mnist1d-mlp-noise", "digits", "digits-noise")

CONTENDERS: dict[str, Contender] = {
    contender.name: contender
    for contender in (
        Contender("adamw", "AdamW", "arXiv 1711.05101", builders.adamw, ADAMW_OPTIONS),
        Contender(
            "adamw-no-momentum",
            "AdamW at β1 = 0, its better setting on the MLPs",
            "arXiv 1711.05101",
            builders.adamw,
            {**ADAMW_OPTIONS, "beta1": 0.0},
        ),
        Contender(
            "sam",
            "SAM on AdamW, at β1 = 0 on the MLPs",
            "arXiv 2010.01412",
            builders.sam,
            {**ADAMW_OPTIONS, "rho": 0.05},
            by_task={task: {"beta1": 0.0, "rho": 0.5} for task in MLPS},
        ),
        Contender(
            "asam",
            "adaptive SAM on AdamW: the perturbation scales with the weights",
            "arXiv 2102.11600",
            builders.asam,
            {**ADAMW_OPTIONS, "rho": 0.5, "eta": 0.01},
        ),
        Contender(
            "k-sam",
            "SAM on the half of the batch with the highest losses",
            "arXiv 2210.12864",
            builders.k_sam,
            {**ADAMW_OPTIONS, "rho": 0.05, "k_fraction": 0.5},
            by_task={task: {"beta1": 0.0, "rho": 0.2} for task in MLPS},
        ),
        Contender(
            "late-sam",
            "SAM on AdamW in the last tenth of the steps, AdamW before",
            "arXiv 2410.10373",
            builders.late_sam,
            {**ADAMW_OPTIONS, "rho": 0.05, "share": 0.1},
            by_task={task: {"beta1": 0.0, "rho": 0.5} for task in MLPS},
        ),
        Contender(
            "msam",
            "probing with the momentum, at w − ρ m / ‖m‖",
            "arXiv 2401.12033",
            builders.msam,
            {**ADAMW_OPTIONS, "rho": 0.3},
            by_task={task: {"rho": 2.0} for task in MLPS},
        ),
        Contender(
            "adamw-ema",
            "AdamW, evaluated at the exponential moving average of its weights",
            "arXiv 1803.05407",
            builders.adamw_ema,
            {**ADAMW_OPTIONS, "decay": 0.99},
        ),
        Contender(
            "schedule-free",
            "Schedule-Free AdamW: lr stays up, evaluated at an average of the weights",
            "arXiv 2405.15682",
            builders.schedule_free,
            ADAMW_OPTIONS,
            schedule="constant",
            later={"r": 0.0},
        ),
        Contender(
            "gpa",
            "AdamW at an interpolation of its iterate and an exponential moving average, evaluated at the average",
            "arXiv 2512.17131",
            builders.gpa,
            {**ADAMW_OPTIONS, "mu_x": 0.9967, "mu_y": 0.7},
        ),
        Contender(
            "ema-nesterov",
            "AdamW from a point ahead along the exponential moving average of its displacements",
            "arXiv 2605.25395",
            builders.ema_nesterov,
            {**ADAMW_OPTIONS, "ahead": 0.5, "decay": 0.99, "rest": 0.1},
        ),
        Contender(
            "sgd",
            "SGD with Nesterov's momentum; weight decay is in the gradient",
            "torch.optim.SGD",
            builders.sgd,
            {"lr": 0.3, "momentum": 0.9, "weight_decay": 5e-4},
            scaled=("lr",),
        ),
        Contender(
            "nadam",
            "Adam with Nesterov's momentum, weight decay decoupled",
            "OpenReview OM0jvwB8jIp57ZJjtNEZ",
            builders.nadam,
            {**ADAMW_OPTIONS, "momentum_decay": 4e-3},
        ),
        Contender(
            "adabelief",
            "v from the gradient's distance to its mean",
            "arXiv 2010.07468",
            builders.adabelief,
            {**ADAMW_OPTIONS, "eps": 1e-16},
        ),
        Contender(
            "ademamix",
            "AdamW with a second, slower momentum; its weight and its memory grow over the run",
            "arXiv 2409.03137",
            builders.ademamix,
            {**ADAMW_OPTIONS, "beta3": 0.999, "alpha": 5.0},
        ),
        Contender(
            "adan",
            "Nesterov's momentum by the moving average of gradient differences",
            "arXiv 2208.06677",
            builders.adan,
            {"lr": 0.03, "beta1": 0.98, "beta2": 0.92, "beta3": 0.99, "eps": 1e-8, "weight_decay": 0.15},
        ),
        Contender(
            "mars",
            "MARS-AdamW, approximate: gradients corrected by their last difference",
            "arXiv 2411.10438",
            builders.mars,
            {**ADAMW_OPTIONS, "gamma": 0.025},
        ),
        Contender(
            "lion",
            "the sign of an interpolated momentum",
            "arXiv 2302.06675",
            builders.lion,
            {"lr": 0.003, "beta1": 0.9, "beta2": 0.99, "weight_decay": 1.5},
            scaled=("lr", "weight_decay"),
        ),
        Contender(
            "atam",
            "isotropic straightening of the trajectory, ĝ = g + γ c",
            SEED_DOCUMENT,
            builders.published,
            {**ADAMW_OPTIONS, "gamma": 1.0, "beta_c": 0.9, "modulator": "uniform"},
        ),
        Contender(
            "hatam-published",
            "HATAM, the source document's pseudocode",
            SEED_DOCUMENT,
            builders.published,
            {**ADAMW_OPTIONS, "gamma": 1.0, "beta_c": 0.9, "modulator": "relative"},
        ),
        Contender(
            "hatam",
            "HATAM: AdamW whose gradient is taken ahead of its iterate once lr falls from its peak",
            SEED_DOCUMENT,
            builders.hatam,
            {**ADAMW_OPTIONS, "gamma": 0.2, "travel": 15.0, "horizon": 2.0, "modulator": "uniform", "fade": 0.1},
        ),
    )
}


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
    options = {**contender.options, **_of_task(contender, task), **contender.by_task.get(task, {})}
    for key, value in changed(spec, filter(None, changes.split(","))).items():
        options[known(key, contender.every, f"option of {name}")] = value
    known(str(options.get("schedule", contender.schedule)), SCHEDULES, "schedule")
    return contender, contender.recorded(options)


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


def _of_task(contender: Contender, task: str) -> Options:
    """The defaults that a task asks for. They are AdamW's: what a contender has on a scale of its own keeps its ratio
    to AdamW's, as the lr of SGD and Lion, or stays."""
    found: Options = {}
    every = dict.fromkeys(key for each in CONTENDERS.values() for key in each.options)
    for key, value in (find(task).options if task in all_tasks() or ":" in task else {}).items():
        own, usual = contender.options.get(known(key, every, f"option of task {task}")), ADAMW_OPTIONS.get(key)
        if own is not None and (own == usual or usual is None):
            found[key] = value
        elif key in contender.scaled:
            found[key] = value * own / usual
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
