r"""The late reach for any optimizer: its step moves z, and the gradient is taken ahead of z along its last step.

.. math::
    w = z - \kappa_t\, u_t, \qquad u_t = \frac{z_{t-1} - z_t}{\mathrm{lr}_t},

with κ as in :mod:`hatam.reach`. lr u is the whole step of the base, including weight decay. At lr = 0 there is no u:
then ρ stays, and w = z. The tensors of a step are in :mod:`hatam.wrapped`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, overload

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.optim import Optimizer

from . import reach, sharded, wrapped
from .options import CHECKS, raise_peak
from .reach import Scalar
from .state import hidden_flags
from .straightening import EVALUATING, refuse_inside
from .wrapped import Part

OPTIONS = ("gamma", "travel", "horizon", "fade", "hidden")


class Straightened(Optimizer):
    """Adds HATAM's late reach to any optimizer.

    The options are those of :class:`hatam.HATAM`, which does nearly the same as this wrapper around AdamW, faster and
    without the additional buffer of the parameters' size. Groups, state and state dict are the base's own, with the
    entries of the reach beside the base's, so that schedules, checkpoints and mixed precision work as before.

    Args:
        base: an optimizer with one gradient per step. Its groups have ``lr``, which a schedule has to lower.
        gamma, travel, horizon, fade, hidden: see :class:`hatam.HATAM`. A group of the base may set its own, unless the
            base has an option of that name.

    Raises:
        TypeError: ``base`` is no optimizer, has a reach already, needs a closure, or a group of it has no ``lr``.
        ValueError: an option is out of range, or ``base`` has ``differentiable=True``.
        RuntimeError: parameters that FSDP1 has flattened, or DTensors with a partial placement.

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
        check_base(base)
        given = locals()
        self.base, self.options = base, {name: given[name] for name in OPTIONS}
        for name, value in self.options.items():
            CHECKS[name](name, value)
        self._parts: dict[int, tuple[Any, list[Part]]] = {}  # by group index, with what they depend on
        super().__init__(base.param_groups, base.defaults)
        self._adopt()
        for group in self.param_groups:
            self._check(group)

    def _adopt(self) -> None:
        """Take the base's present groups and state as one's own, and forget the last step's tensors."""
        self.param_groups, self.state = self.base.param_groups, self.base.state
        self._parts.clear()

    def _option(self, group: dict[str, Any], name: str) -> Any:
        """An option of a group: its own, unless the base means something else by it, or the wrapper's."""
        return group[name] if name in group and name not in self.base.defaults else self.options[name]

    def _check(self, group: dict[str, Any]) -> None:
        for name in OPTIONS:
            CHECKS[name](name, self._option(group, name))
        sharded.check_supported({**group, "gamma": self._option(group, "gamma"), "state_dtype": None})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base. Has no effect during construction, when the base has all groups already."""
        if "param_groups" in vars(self) and self.param_groups is self.base.param_groups:
            self._check({**param_group, "params": []})
            self.base.add_param_group(param_group)
            self._check(self.param_groups[-1])

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform one step of the base at z, with the gradient taken at w.

        If the base raises an exception, the parameters stay where it has left them, and that is z then.

        Args:
            closure: reevaluates the model and returns the loss (optional). It is called once, at w.

        Raises:
            RuntimeError: after :meth:`eval` or inside :meth:`straightened`. No parameter has changed.
        """
        refuse_inside(self, "step()")
        if any(group.get("evaluating") for group in self.param_groups):
            raise RuntimeError(EVALUATING)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        stepped = [
            (group, self._reach_factor(group), self._gather(i, group))
            for i, group in enumerate(self.param_groups)
            if any(p.grad is not None for p in group["params"])
        ]
        reaching = [part for group, _, parts in stepped for part in parts if group["reach_started"]]
        for part in reaching:
            part.to_z()
        try:
            self.base.step()
        except BaseException:
            for part in reaching:
                part.forget_offsets()
            raise
        for group, factor, parts in stepped:
            lr, peak = (x.squeeze() if isinstance(x, Tensor) else x for x in (group["lr"], group["lr_peak"]))
            for part in parts:
                part.count_step()
                if group["reach_started"]:
                    part.to_w(lr, peak, factor, self._option(group, "travel"), self._option(group, "horizon"))
        return loss

    def _reach_factor(self, group: dict[str, Any]) -> Scalar:
        """Raise the peak lr of a group, and return γ · lr_factor(lr): κ without ρ, τ and the horizon."""
        group.setdefault("lr_peak", 0.0)
        peak, gamma = raise_peak(group), self._option(group, "gamma")
        factor = gamma * reach.lr_factor(group["lr"], peak, self._option(group, "fade"))
        started = isinstance(factor, Tensor) if gamma != 0 else False
        group["reach_started"] = bool(group.get("reach_started") or started or factor > 0)
        return factor

    @_disable_dynamo  # torch.compiler.disable would import torch._dynamo at once, which takes seconds
    def _gather(self, i: int, group: dict[str, Any]) -> list[Part]:
        """The parameters of a group that have gradients and may have a reach, from the cache if nothing has changed."""
        params = [p for p in group["params"] if p.grad is not None]
        own = {"hidden": self._option(group, "hidden"), "param_names": group.get("param_names", ())}
        may_reach = self._option(group, "gamma") != 0 or group["reach_started"]
        key = (may_reach, own["hidden"], list(map(id, params)))
        known, parts = self._parts.get(i, (None, []))
        if known != key or not all(part.is_current(self.state) for part in parts):
            flags = hidden_flags({**group, **own}) if may_reach else [False] * len(group["params"])
            wrapped.drop_lost_reaches(self.state, group["params"], flags)
            hidden = [p for p, flag in zip(group["params"], flags, strict=True) if flag and p.grad is not None]
            self._parts[i] = key, wrapped.gather(self.state, hidden)
        return self._parts[i][1]

    def _offsets(self, *, evaluating: bool) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """Parameters that may have an offset, with their states, of the groups that are or are not evaluating."""
        for group in self.param_groups:
            if bool(group.get("evaluating")) is evaluating:
                yield from ((p, self.state[p]) for p in group["params"] if "offset" in self.state.get(p, {}))

    @torch.no_grad()
    def eval(self) -> None:
        """Set the parameters to z, to evaluate or save the model. :meth:`step` raises until :meth:`train` is called."""
        self._switch(evaluating=True)

    @torch.no_grad()
    def train(self, mode: bool = True) -> None:
        """Set the parameters to w again, up to rounding. ``train(False)`` is :meth:`eval`.

        Parameters that no longer require a gradient stay at z.
        """
        self._switch(evaluating=not mode)

    def _switch(self, *, evaluating: bool) -> None:
        refuse_inside(self, "eval() or train()")
        for p, state in self._offsets(evaluating=not evaluating):
            if not p.requires_grad and not evaluating:
                state["offset"].zero_()
            p.add_(state["offset"], alpha=1 if evaluating else -1)
        for group in self.param_groups:
            group["evaluating"] = evaluating

    @contextmanager
    def straightened(self) -> Iterator[None]:
        """Set the parameters to z for the block; at its end restore them bit for bit.

        Inside, offsets are 0, so that a checkpoint made there has z and no offset to undo. The block keeps two copies
        of all parameters that may have an offset.

        Raises:
            RuntimeError: from ``step()``, ``load_state_dict()``, ``eval()`` and ``train()`` inside the block.
        """
        saved = []
        self._straightened += 1
        try:
            with torch.no_grad():
                for p, state in self._offsets(evaluating=False):
                    saved.append((p, p.detach().clone(), state, state["offset"]))
                    p.add_(state["offset"])
                    state["offset"] = torch.zeros_like(state["offset"])
            yield
        finally:
            self._straightened -= 1
            with torch.no_grad():
                for p, w, state, offset in saved:
                    p.copy_(w)
                    state["offset"] = offset

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "base": self.base, "options": self.options}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, "_parts": {}})

    def state_dict(self) -> dict[str, Any]:
        """The base's state dict. The states of parameters that may have a reach have its entries beside the base's."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a result of :meth:`state_dict`, or a state dict of the base; then the parameters are taken to be z.

        Raises:
            RuntimeError: inside :meth:`straightened`.
            ValueError: an offset has another shape than its parameter. Nothing has changed.
        """
        refuse_inside(self, "load_state_dict()")
        params = [p for group in self.param_groups for p in group["params"]]
        saved = [i for group in state_dict["param_groups"] for i in group["params"]]
        bases, own = wrapped.split(state_dict, dict(zip(saved, params, strict=False)))
        self.base.load_state_dict(bases)
        self._adopt()
        for p, found in own.items():
            self.state[p].update(found)


def check_base(base: Any) -> None:
    """Refuse what cannot be wrapped, see :class:`Straightened`."""
    if not isinstance(base, Optimizer) or not all("lr" in group for group in base.param_groups):
        raise TypeError(f"base must be a torch optimizer whose groups have an lr, not {type(base).__name__}")
    if hasattr(base, "straightened"):
        raise TypeError(f"base must be an optimizer without a reach, and {type(base).__name__} has one; use it alone")
    closure = inspect.signature(base.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise TypeError(f"base must take one gradient per step, and {type(base).__name__}.step needs a closure")
    if base.defaults.get("differentiable"):
        raise ValueError("base has differentiable=True, which is not supported around a base; leave it at False")
