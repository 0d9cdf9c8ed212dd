"""AdamW without momentum, straightened, as a :class:`torch.optim.Optimizer`. The math is in :mod:`hatam.straighten`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT, _get_scalar_dtype

from . import straighten
from .arguments import check_choice, check_flag, check_lr, check_number, listed
from .displaced import Displaced
from .straighten import Columns, Options, Scalar

MODULATORS = {"uniform": False, "relative": True}

STATE = ("lead", "exp_avg_sq", "step", "kappa", "ratio", "hidden")  # in the order of Columns

EMBEDDINGS = ("embed", "token", "position", "places", "wte", "wpe", "lm_head")
"""What the names, in lower case, of parameters contain that are no hidden weights though they have two dimensions."""


class StraightenedAdamW(Displaced):
    r"""AdamW that averages its trajectory and takes its gradient ahead of the average.

    A fast iterate z takes the steps of AdamW without momentum. The average x follows it and is the point to evaluate
    and to publish. The parameters w are ahead of x, by a share of the lead D = z − x and, in hidden weights, by γ times
    the root mean square of the weights:

    .. math::
        z \leftarrow z - \mathrm{lr}_t (g / h + \mathrm{wd}\, w), \qquad
        x \leftarrow x + a_t (z - x), \qquad
        w = x + (1 - \beta_1 + \mathrm{reach}_t)\, S \circ (z - x).

    See :mod:`hatam.straighten` for h, a, S and the reach. The reach is 0 while lr is at its peak and takes over as a
    schedule lowers it. γ = 0, r = 0 and no limit on the memory are Schedule-Free AdamW. One gradient a step. State: D
    and v, as much as AdamW's, and 0-dim scalars.

    Args:
        params: parameters, parameter groups or named parameters. Every option can be set per group.
        lr: learning rate, a float or a one-element tensor, >= 0.
        betas: the share of x in the probe, and the rate of v, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: decoupled weight decay, >= 0, taken at w.
        gamma: reach as a share of the root mean square of a tensor's weights, >= 0.
        modulator: "uniform" for S = 1, or "relative" for S = min(h / mean(h), 3).
        averaging: r, >= 0: as long as the memory does not limit it, the average weighs step t by t^r.
        memory: the most steps that the average remembers, >= 1; 10 is AdamW's momentum at β1 = 0.9, None sets no limit.
        fade: share of the peak lr below which the reach runs out with lr, in (0, 1]. At a constant lr there is none.
        hidden: whether the group's tensors have a reach. None means those of two dimensions or more whose name, where
            parameters have names, is not that of an embedding (see ``EMBEDDINGS``).
        maximize: maximize the objective.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, its value, its range and a remedy.

    Example:
        >>> import torch
        >>> from hatam.straightened_adamw import StraightenedAdamW
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = StraightenedAdamW(model.parameters(), lr=0.01)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(8, 4)).square().mean().backward()
        ...     optimizer.step()
        >>> with optimizer.straightened():  # x, to evaluate
        ...     loss = model(torch.ones(8, 4)).square().mean()

    Source: the HATAM source document; https://arxiv.org/abs/2405.15682 is the limit of an average that grows.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        gamma: float = 0.4,
        modulator: str = "uniform",
        averaging: float = 0.0,
        memory: float | None = 10.0,
        fade: float = 0.1,
        hidden: bool | None = None,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "gamma": gamma,
            "modulator": modulator,
            "averaging": averaging,
            "memory": memory,
            "fade": fade,
            "hidden": hidden,
            "maximize": maximize,
            "evaluating": False,
            "lr_peak": 0.0,
            "weight_sum": 0.0,
            "steps": 0,
        }
        _check(defaults)
        super().__init__(listed(params), defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group in mid-training; its options are checked first."""
        if isinstance(param_group, dict):
            _check({**self.defaults, **param_group})
        super().add_param_group(param_group)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform one optimization step.

        Args:
            closure: reevaluates the model and returns the loss (optional).

        Raises:
            RuntimeError: the optimizer is in evaluation mode, or a gradient is sparse. Nothing has moved then.
        """
        self._refuse_evaluating()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            if any(p.grad is not None and p.grad.is_sparse for p in group["params"]):
                raise RuntimeError("StraightenedAdamW does not support sparse gradients; use dense ones")
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._init_group(group)
                grads = [p.grad for p in params]
                if group["maximize"]:
                    grads = list(torch._foreach_neg(grads))
                straighten.step_(self._columns(params), grads, _advance(group))
        return loss

    def _init_group(self, group: dict[str, Any]) -> None:
        """State of the parameters that have a gradient and no state yet."""
        for p, name in zip(group["params"], group.get("param_names", [""] * len(group["params"])), strict=True):
            if p.grad is None or self.state.get(p):
                continue
            scalar = torch.zeros((), dtype=torch.promote_types(p.dtype, torch.float32), device=p.device)
            self.state[p] = {
                "step": torch.zeros((), dtype=_get_scalar_dtype()),
                "lead": torch.zeros_like(p, memory_format=torch.preserve_format),
                "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
                "kappa": scalar,
                "ratio": scalar.clone(),
                "hidden": is_hidden(p, name) if group["hidden"] is None else group["hidden"],
            }

    def _columns(self, params: list[Tensor]) -> Columns:
        states = [self.state[p] for p in params]
        return Columns(params, *([state[key] for state in states] for key in STATE))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but κ and ρ, which torch would cast to the parameter's dtype, stay what they were: from another κ
        another x would be recovered.

        Raises:
            ValueError: the state is that of another optimizer. Nothing has changed then.
        """
        for found in state_dict["state"].values():
            if lacking := [key for key in STATE if key not in found]:
                raise ValueError(
                    f"the checkpoint lacks {', '.join(map(repr, lacking))} of a parameter: it is not one of "
                    "StraightenedAdamW; begin a new run from the model's weights"
                )
        super().load_state_dict(state_dict)
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        for i, p in zip(saved, [p for group in self.param_groups for p in group["params"]], strict=True):
            for key in ("kappa", "ratio") if i in state_dict["state"] else ():
                self.state[p][key] = state_dict["state"][i][key].to(p.device, copy=True)

    def _displace(self, group: dict[str, Any], sign: int) -> None:
        params = [p for p in group["params"] if self.state.get(p)]
        if params:
            found = straighten.offsets(self._columns(params), _options(group, 0.0, 0.0))
            torch._foreach_add_(params, found, alpha=sign)


def _advance(group: dict[str, Any]) -> Options:
    """Count a step of the group, and give its options."""
    lr, peak, weight_sum, steps = (group[key] for key in ("lr", "lr_peak", "weight_sum", "steps"))
    if isinstance(lr, Tensor) and not isinstance(peak, Tensor):  # no constant that changes, for torch.compile
        peak, weight_sum, steps = (torch.as_tensor(x, dtype=torch.float64) for x in (peak, weight_sum, steps))
    steps = steps + 1
    peak = torch.maximum(peak, lr.double()) if isinstance(lr, Tensor) else max(peak, lr)
    weight = peak**2 * steps ** group["averaging"]
    weight_sum = weight_sum + weight
    group.update(lr_peak=peak, weight_sum=weight_sum, steps=steps)
    return _options(
        group,
        straighten.share(weight, weight_sum, lr, peak, group["memory"]),
        straighten.turn(lr, peak, group["fade"]),
    )


def _options(group: dict[str, Any], share: Scalar, turn: Scalar) -> Options:
    return Options(
        lr=group["lr"],
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        eps=group["eps"],
        weight_decay=group["weight_decay"],
        gamma=group["gamma"],
        relative=MODULATORS[group["modulator"]],
        share=share,
        turn=turn,
    )


def is_hidden(param: Tensor, name: str) -> bool:
    """Whether a parameter is a hidden weight, by its shape and its name."""
    return param.dim() >= 2 and not any(word in name.lower() for word in EMBEDDINGS)


def _check(group: dict[str, Any]) -> None:
    """Refuse options that are wrong."""
    check_lr(group["lr"])
    betas = group["betas"]
    if isinstance(betas, str) or not isinstance(betas, (tuple, list)) or len(betas) != 2:
        raise TypeError(f"betas must be a pair of floats such as (0.9, 0.95), not {betas!r}; make it a tuple")
    for name, value, high, remedy in (
        ("betas[0]", betas[0], 1.0, "the default is 0.9"),
        ("betas[1]", betas[1], 1.0, "the default is 0.95"),
        ("eps", group["eps"], math.inf, "AdamW's default is 1e-8"),
        ("weight_decay", group["weight_decay"], math.inf, "0 turns it off"),
        ("gamma", group["gamma"], math.inf, "0 turns the reach off"),
        ("averaging", group["averaging"], math.inf, "0 weighs all steps alike"),
    ):
        check_number(name, value, 0.0, high, open_end=True, remedy=remedy)
    if group["memory"] is not None:
        check_number("memory", group["memory"], 1.0, math.inf, remedy="None sets no limit")
    check_number("fade", group["fade"], 0.0, 1.0, open_start=True, remedy="1 lets the reach follow lr")
    check_choice("modulator", group["modulator"], MODULATORS)
    check_flag("maximize", group["maximize"])
    check_flag("hidden", group["hidden"], optional=True)
