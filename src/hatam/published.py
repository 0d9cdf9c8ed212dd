r"""HATAM exactly as in its source document's pseudocode: the gradient is corrected by its smoothed differences.

.. math::
    y_t = g_t - g_{t-1}, \qquad c_t = \beta_c c_{t-1} + (1 - \beta_c) y_t, \qquad
    h_t = \sqrt{v_{t-1} / (1 - \beta_2^{t-1})} + \varepsilon, \qquad S_t = h_t / (\mathrm{mean}(h_t) + \varepsilon)

.. math::
    \hat g_t = g_t + \gamma\, S_t \circ c_t, \qquad
    w \leftarrow w - \mathrm{lr}\,\bigl(\hat m_t / (\sqrt{\hat v_t} + \varepsilon) + \mathrm{wd}\, w\bigr),

with m and v the moments of ĝ, and h_1 = ε. One buffer replaces c and g_{t−1}: e, the exponential moving average of g
with rate βc. Then c_t = (1 − βc)(g_t − e_{t−1}).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT, _get_scalar_dtype

from .arguments import as_list, check_betas, check_choice, check_lr, check_number

KEYS = ("exp_avg", "exp_avg_sq", "exp_avg_grad")  # m, v, e
MODULATORS = ("relative", "uniform")


class PublishedHATAM(Optimizer):
    """HATAM as in its source document, or ATAM with ``modulator="uniform"``.

    This is a baseline for comparisons; use :class:`hatam.HATAM` for training. Since v is computed from ĝ, S depends on
    its own corrections. This optimizer was not better than AdamW in any comparison of this project. It takes one
    gradient per step and keeps three buffers.

    Args:
        params: parameters or parameter groups. Every option can be set per group.
        lr: learning rate, >= 0.
        betas: rates of m and v, each in [0, 1).
        eps: added to the denominator, > 0.
        weight_decay: decoupled weight decay, >= 0.
        gamma: strength of the correction, >= 0; 0 is AdamW. The document gives no value.
        beta_c: rate of e, in [0, 1). The document gives no value.
        modulator: "relative" for S as above, or "uniform" for S = 1, which is ATAM.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, its value, its range and a remedy.

    Example:
        >>> import torch
        >>> from hatam import PublishedHATAM
        >>> p = torch.nn.Parameter(torch.tensor([1.0, -1.0]))
        >>> optimizer = PublishedHATAM([p], lr=0.1)
        >>> p.grad = torch.tensor([0.5, 0.1])
        >>> optimizer.step()
        >>> p
        Parameter containing:
        tensor([ 0.8990, -1.0990], requires_grad=True)

    Source: the HATAM source document.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        gamma: float = 1.0,
        beta_c: float = 0.9,
        modulator: str = "relative",
    ) -> None:
        given = locals()
        names = ("lr", "betas", "eps", "weight_decay", "gamma", "beta_c", "modulator")
        super().__init__(as_list(params), {name: given[name] for name in names})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its options are checked first."""
        if isinstance(param_group, dict):
            _check({**self.defaults, **param_group})
        super().add_param_group(param_group)
        if any(p.is_complex() for p in self.param_groups[-1]["params"]):
            del self.param_groups[-1]
            raise ValueError("complex parameters are not supported; pass torch.view_as_real of them")

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform one optimization step.

        Args:
            closure: reevaluates the model and returns the loss (optional).
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params: list[Tensor] = []
            grads: list[Tensor] = []
            columns: dict[str, list[Tensor]] = {key: [] for key in (*KEYS, "step")}
            self._init_group(group, params, grads, *columns.values())
            if params:
                step_(params, grads, columns, group)
        return loss

    def _init_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], *columns: list[Tensor]
    ) -> None:
        """Append parameters with gradients, the gradients and the states. torch.compile does not trace this method."""
        for p in group["params"]:
            if p.grad is None:
                continue
            state = self.state[p]
            if not state:
                state["step"] = torch.zeros((), dtype=_get_scalar_dtype())
                state.update({key: torch.zeros_like(p, memory_format=torch.preserve_format) for key in KEYS})
            params.append(p)
            grads.append(p.grad)
            for key, column in zip((*KEYS, "step"), columns, strict=True):
                column.append(state[key])


def step_(params: list[Tensor], grads: list[Tensor], columns: dict[str, list[Tensor]], group: dict[str, Any]) -> None:
    """Take one step of all tensors. The keys of ``columns`` are ``KEYS`` and "step", in this order."""
    ms, vs, es, steps = columns.values()
    (beta1, beta2), eps, lr, beta_c = group["betas"], group["eps"], group["lr"], group["beta_c"]

    # ĝ = g + γ S c, with S from v_{t−1}
    corrected = list(torch._foreach_sub(grads, es))
    torch._foreach_mul_(corrected, group["gamma"] * (1 - beta_c))
    if group["modulator"] == "relative":
        hs = _denominators(vs, steps, beta2, eps)
        torch._foreach_div_(hs, [h.mean() + eps for h in hs])
        torch._foreach_mul_(corrected, hs)
    torch._foreach_add_(corrected, grads)
    torch._foreach_lerp_(es, grads, 1 - beta_c)

    # w ← w − lr (m̂ / (sqrt(v̂) + ε) + wd w)
    torch._foreach_add_(steps, 1)
    torch._foreach_lerp_(ms, corrected, 1 - beta1)
    torch._foreach_mul_(vs, beta2)
    torch._foreach_addcmul_(vs, corrected, corrected, 1 - beta2)
    updates = list(torch._foreach_div(ms, _denominators(vs, steps, beta2, eps)))
    torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
    torch._foreach_mul_(updates, [-lr / (1 - beta1**t) for t in _to_floats(steps)])
    torch._foreach_add_(params, updates)


def _denominators(vs: list[Tensor], steps: list[Tensor], beta2: float, eps: float) -> list[Tensor]:
    """sqrt(v̂) + ε. At step 0, the bias correction of step 1 is used, since v = 0."""
    hs = list(torch._foreach_sqrt(vs))
    torch._foreach_div_(hs, [(1 - beta2**t) ** 0.5 for t in _to_floats([t.clamp(min=1) for t in steps])])
    torch._foreach_add_(hs, eps)
    return hs


def _to_floats(steps: list[Tensor]) -> list[Any]:
    return steps if torch.compiler.is_compiling() else [t.item() for t in steps]


def _check(group: dict[str, Any]) -> None:
    """Refuse wrong options."""
    check_lr(group["lr"])
    check_betas(group["betas"])
    check_number("eps", group["eps"], 0.0, math.inf, open_start=True, open_end=True, remedy="AdamW's is 1e-8")
    check_number("weight_decay", group["weight_decay"], 0.0, math.inf, open_end=True, remedy="0 turns it off")
    check_number("gamma", group["gamma"], 0.0, math.inf, open_end=True, remedy="0 is AdamW")
    check_number("beta_c", group["beta_c"], 0.0, 1.0, open_end=True, remedy="this library's default is 0.9")
    check_choice("modulator", group["modulator"], dict.fromkeys(MODULATORS))
