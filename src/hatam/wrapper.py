r"""The late reach for any optimizer: its step moves z, and the gradient is taken ahead of z along its last step.

.. math::
    w = z - \kappa_t\, u_t, \qquad u_t = \frac{z_{t-1} - z_t}{\mathrm{lr}_t},

with κ as in :mod:`hatam.reach`. lr u is the whole step of the base, including weight decay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

from . import reach
from .options import CHECKS
from .state import hidden_flags, scalar
from .straightening import EVALUATING, refuse_inside

OPTIONS = ("gamma", "travel", "horizon", "fade", "hidden")
SCALARS = ("reach", "rms_ratio", "path_length")


class Straightened(Optimizer):
    """Adds HATAM's late reach to any optimizer.

    The options are those of :class:`hatam.HATAM`, which does nearly the same as this wrapper around AdamW. HATAM is
    faster and needs no additional buffer. The wrapper needs one of the parameters' size, and another during a step.
    Parameter groups are the base's own objects, so that schedules work as before.

    Args:
        base: an optimizer with one gradient per step. Its groups have ``lr``, which a schedule has to lower.
        gamma, travel, horizon, fade, hidden: see :class:`hatam.HATAM`. A group of the base may set its own ``hidden``.

    Raises:
        TypeError, ValueError: an option is wrong, ``base`` is not an optimizer, or a group of it has no ``lr``.

    Example:
        >>> import torch
        >>> from hatam import Straightened
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = Straightened(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9))
        >>> schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(8, 4)).square().mean().backward()
        ...     optimizer.step()
        ...     schedule.step()
        >>> with optimizer.straightened():
        ...     loss = model(torch.ones(8, 4)).square().mean()
    """

    _straightened = 0  # how many straightened() blocks are open

    def __init__(
        self,
        base: Optimizer,
        *,
        gamma: float = 0.2,
        travel: float = 15.0,
        horizon: float = 2.0,
        fade: float = 0.1,
        hidden: bool | None = None,
    ) -> None:
        if not isinstance(base, Optimizer) or not all("lr" in group for group in base.param_groups):
            raise TypeError(f"base must be a torch optimizer whose groups have an lr, not {type(base).__name__}")
        given = locals()
        self.options = {name: given[name] for name in OPTIONS}
        for name, value in self.options.items():
            CHECKS[name](name, value)
        self.base, self.evaluating = base, False
        super().__init__(base.param_groups, base.defaults)
        self.param_groups = base.param_groups

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base. Has no effect during construction, when the base has all groups already."""
        if "param_groups" in vars(self) and self.param_groups is self.base.param_groups:
            self.base.add_param_group(param_group)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform one step of the base at z, with the gradient taken at w.

        Args:
            closure: reevaluates the model and returns the loss (optional). It is called once, at w.

        Raises:
            RuntimeError: after :meth:`eval` or inside :meth:`straightened`. No parameter has changed.
        """
        refuse_inside(self, "step()")
        if self.evaluating:
            raise RuntimeError(EVALUATING)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        reaching = [self._reaching(group) for group in self.param_groups]
        before = []
        for params in reaching:
            self._move(params, -1)
            before.append([p.clone() for p in params])
        self.base.step()
        for group, params, zs in zip(self.param_groups, reaching, before, strict=True):
            group["lr_peak"] = max(float(group.get("lr_peak", 0.0)), float(group["lr"]))
            if params:
                self._displace(group, params, zs)
        return loss

    def _reaching(self, group: dict[str, Any]) -> list[Tensor]:
        """The parameters of a group that have gradients and may have a reach."""
        flags = hidden_flags({**group, "hidden": group.get("hidden", self.options["hidden"])})
        return [p for p, hidden in zip(group["params"], flags, strict=True) if hidden and p.grad is not None]

    def _displace(self, group: dict[str, Any], params: list[Tensor], before: list[Tensor]) -> None:
        """Displace z to w = z − κ u, and store ρ and N for the next step. Overwrites ``before``, the last z."""
        lr, peak, options = float(group["lr"]), group["lr_peak"], self.options
        torch._foreach_sub_(before, params)  # lr u
        states = [self.state[p] for p in params]
        for state, p in zip(states, params, strict=True):
            if not state:
                state.update({key: scalar(0.0, p) for key in SCALARS}, step=0)
            state["step"] += 1
        ratios, lengths = (torch.stack([state[key] for state in states]) for key in ("rms_ratio", "path_length"))
        factor = options["gamma"] * reach.lr_factor(lr, peak, options["fade"])
        reaches = (factor * ratios * reach.travel_factor(lengths, options["travel"])).clamp(
            max=options["horizon"] * peak
        )
        if lr > 0 and (factor > 0 or bool((ratios > 0).any())):
            roots = ratios.new_tensor([max(p.numel(), 1) ** 0.5 for p in params])
            z_norms, step_norms = (torch.stack(torch._foreach_norm(xs)).to(ratios) for xs in (params, before))
            next_ratios = reach.next_rms_ratios(z_norms / roots, step_norms / (roots * lr), ratios)
            steps = ratios.new_tensor([state["step"] for state in states])
            lengths = reach.next_path_lengths(lengths, next_ratios, ratios, lr, peak, steps)
            ratios = next_ratios
        scales = -reaches / lr if lr > 0 else torch.zeros_like(reaches)
        torch._foreach_mul_(before, list(scales.unbind()))
        for state, *row in zip(states, reaches, ratios, lengths, before, strict=True):
            state.update(zip((*SCALARS, "offset"), row, strict=True))
        self._move(params, 1)

    def _move(self, params: list[Tensor], sign: int) -> None:
        """Add or subtract the stored offsets −κ u."""
        moved = [p for p in params if "offset" in self.state.get(p, {})]
        if moved:
            torch._foreach_add_(moved, [self.state[p]["offset"] for p in moved], alpha=sign)

    @torch.no_grad()
    def eval(self) -> None:
        """Bring the parameters to z, to evaluate or to save the model. A step is refused until :meth:`train`."""
        self._switch(evaluating=True)

    @torch.no_grad()
    def train(self, mode: bool = True) -> None:
        """Bring the parameters back to w, up to rounding; ``train(False)`` is :meth:`eval`."""
        self._switch(evaluating=not mode)

    def _switch(self, *, evaluating: bool) -> None:
        refuse_inside(self, "eval() or train()")
        if self.evaluating != evaluating:
            self._move(list(self.state), -1 if evaluating else 1)
            self.evaluating = evaluating

    @contextmanager
    def straightened(self) -> Iterator[None]:
        """Inside, the parameters are z; on leaving, exactly what they were."""
        saved = [(p, p.detach().clone()) for p in self.state] if not self.evaluating else []
        evaluating = self.evaluating
        self.eval()
        self._straightened += 1
        try:
            yield
        finally:
            self._straightened -= 1
            self.evaluating = evaluating
            with torch.no_grad():
                for p, w in saved:
                    p.copy_(w)

    def __getstate__(self) -> dict[str, Any]:
        own = {"base": self.base, "options": self.options, "evaluating": self.evaluating}
        return {**super().__getstate__(), **own}

    def state_dict(self) -> dict[str, Any]:
        """The base's state dict, with the state of the reach by parameter index under ``straightened``."""
        numbers = {p: i for i, p in enumerate(p for group in self.param_groups for p in group["params"])}
        own = {numbers[p]: dict(state) for p, state in self.state.items() if p in numbers}
        return {**self.base.state_dict(), "straightened": {"state": own, "evaluating": self.evaluating}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a result of :meth:`state_dict`, or a state dict of the base; then the parameters are taken to be z.

        Raises:
            RuntimeError: inside :meth:`straightened`.
        """
        refuse_inside(self, "load_state_dict()")
        rest = {key: x for key, x in state_dict.items() if key != "straightened"}
        own = state_dict.get("straightened", {"state": {}, "evaluating": False})
        self.base.load_state_dict(rest)
        self.param_groups = self.base.param_groups
        params = [p for group in self.param_groups for p in group["params"]]
        self.state.clear()
        for i, state in own["state"].items():
            self.state[params[i]] = {
                key: x.detach().clone().to(params[i].device) if isinstance(x, Tensor) else x for key, x in state.items()
            }
        self.evaluating = own["evaluating"]
