"""AdamW with the late reach, as a :class:`torch.optim.AdamW`. The math is in :mod:`hatam.reach`."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.adamw import AdamW
from torch.optim.optimizer import ParamsT

from . import reach, straighten
from .arguments import check_flag, check_lr, check_number, listed
from .displaced import Displaced
from .reach import Columns
from .straightened_adamw import is_hidden

OWN_STATE = ("reach", "ratio", "travel")  # κ, ρ and N
STATE = ("exp_avg", "exp_avg_sq", "step", *OWN_STATE)  # in the order of Columns


class ReachAdamW(Displaced, AdamW):
    r"""AdamW whose gradient is taken ahead of its iterate once lr has begun to fall.

    AdamW runs on z, the point to evaluate and to publish. The parameters w are ahead of z in hidden weights, along
    AdamW's own direction u = m / h, by up to γ times the root mean square of the weights, once z has come far, and by
    no more than some steps at the peak lr:

    .. math::
        z \leftarrow z - \mathrm{lr}_t (\hat m / h + \mathrm{wd}\, z), \qquad w = z - \kappa_t u, \qquad
        \kappa_t = \min\left(\gamma\, \tau_t \left(1 - \frac{\mathrm{lr}_t}{\mathrm{peak}_t}\right)^2
        \frac{\mathrm{RMS}(z)}{\mathrm{RMS}(u)},\ \mathrm{horizon} \cdot \mathrm{peak}_t\right).

    See :mod:`hatam.reach` for h and τ. There is no reach while lr is at its peak, and none once lr is 0. γ = 0, and the
    time at the peak, are AdamW to the last bit. One gradient a step. State: AdamW's two buffers, and 0-dim scalars. A
    checkpoint of AdamW loads.

    Args:
        params: parameters, parameter groups or named parameters. Every option can be set per group.
        lr: learning rate, >= 0. Start from AdamW's; a schedule has to lower it in training.
        betas: rates of m and v, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: decoupled weight decay, >= 0.
        gamma: reach as a share of the root mean square of a tensor's weights, >= 0.
        travel: length of z's path, in sizes of the tensor, over which τ rises from 0 to 1, >= 0; 0 sets τ to 1.
        horizon: largest reach in steps at the peak lr, >= 0.
        fade: share of the peak lr below which the reach runs out with lr, in (0, 1].
        hidden: whether the group's tensors have a reach. None means those of two dimensions or more whose name, where
            parameters have names, is not that of an embedding (see :func:`hatam.straightened_adamw.is_hidden`).
        maximize, foreach, fused: as in :class:`torch.optim.AdamW`.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, its value, its range and a remedy.

    Example:
        >>> import torch
        >>> from hatam.reach_adamw import ReachAdamW
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = ReachAdamW(model.parameters(), lr=0.01)
        >>> schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(8, 4)).square().mean().backward()
        ...     optimizer.step()
        ...     schedule.step()
        >>> with optimizer.straightened():  # z, to evaluate
        ...     loss = model(torch.ones(8, 4)).square().mean()

    Source: the HATAM source document; AdamW is https://arxiv.org/abs/1711.05101.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        gamma: float = 0.2,
        travel: float = 20.0,
        horizon: float = 8.0,
        fade: float = 0.1,
        hidden: bool | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
    ) -> None:
        self._own = {
            "gamma": gamma,
            "travel": travel,
            "horizon": horizon,
            "fade": fade,
            "hidden": hidden,
            "evaluating": False,
            "lr_peak": 0.0,
        }
        given: dict[str, Any] = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        _check({**given, **self._own})
        super().__init__(listed(params), **given, maximize=maximize, foreach=foreach, fused=fused)
        self.defaults.update(self._own)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group in mid-training; its options are checked first."""
        if isinstance(param_group, dict):
            _check({**self.defaults, **self._own, **param_group})
            for key, value in self._own.items():
                param_group.setdefault(key, value)
        super().add_param_group(param_group)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
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
        stepped = [(group, self._stepped(group)) for group in self.param_groups]
        with torch.no_grad():
            for group, params in stepped:
                self._move(group, params, -1)
        super().step()
        with torch.no_grad():
            for group, params in stepped:
                self._advance(group, params)
        return loss

    def _stepped(self, group: dict[str, Any]) -> list[Tensor]:
        """The group's parameters that a step moves."""
        params = [p for p in group["params"] if p.grad is not None]
        if any(p.grad.is_sparse for p in params):
            raise RuntimeError("ReachAdamW does not support sparse gradients; use dense ones")
        return params

    def _advance(self, group: dict[str, Any], params: list[Tensor]) -> None:
        lr = float(group["lr"])
        group["lr_peak"] = max(group["lr_peak"], lr)
        turn = float(straighten.turn(lr, group["lr_peak"], group["fade"]))
        hidden = hidden_of(group, params)
        if group["gamma"] == 0:
            for p in hidden:
                if "reach" in self.state[p]:
                    self.state[p]["reach"].zero_()
            return
        if turn == 0:
            hidden = [p for p in hidden if "reach" in self.state[p]]
        for p in hidden:
            for key in OWN_STATE:
                self.state[p].setdefault(key, torch.zeros((), dtype=torch.promote_types(p.dtype, torch.float32)))
        if hidden:
            reach.advance_(self._columns(hidden), group, turn)

    def _displace(self, group: dict[str, Any], sign: int) -> None:
        self._move(group, group["params"], sign)

    def _move(self, group: dict[str, Any], params: list[Tensor], sign: int) -> None:
        displaced = [p for p in params if "reach" in self.state[p] and self.state[p]["reach"] != 0]
        if displaced:
            reach.displace_(self._columns(displaced), group, sign)

    def _columns(self, params: list[Tensor]) -> Columns:
        states = [self.state[p] for p in params]
        return Columns(params, *([state[key] for state in states] for key in STATE))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but the scalars of the reach, which torch would cast to the parameter's dtype, stay as they were:
        from another κ another z would be recovered."""
        super().load_state_dict(state_dict)
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        for i, p in zip(saved, [p for group in self.param_groups for p in group["params"]], strict=True):
            found = state_dict["state"].get(i, {})
            self.state[p].update({key: found[key].to("cpu", copy=True) for key in OWN_STATE if key in found})
        for group in self.param_groups:
            for key, value in self._own.items():
                group.setdefault(key, value)  # of AdamW's checkpoint


def hidden_of(group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
    """Those of the group's parameters that have a reach."""
    if group["hidden"] is not None:
        return params if group["hidden"] else []
    names = dict(zip(group["params"], group.get("param_names", [""] * len(group["params"])), strict=True))
    return [p for p in params if is_hidden(p, names[p])]


def _check(group: dict[str, Any]) -> None:
    """Refuse options that are wrong; torch checks its own."""
    check_lr(group["lr"])
    check_number("gamma", group["gamma"], 0.0, math.inf, open_end=True, remedy="0 is AdamW")
    check_number(
        "travel", group["travel"], 0.0, math.inf, open_end=True, remedy="0 gives the reach from the first step on"
    )
    check_number("horizon", group["horizon"], 0.0, math.inf, remedy="math.inf sets no limit")
    check_number("fade", group["fade"], 0.0, 1.0, open_start=True, remedy="1 lets the reach follow lr")
    check_flag("hidden", group["hidden"], optional=True)
