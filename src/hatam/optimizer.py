"""HATAM as a :class:`torch.optim.Optimizer`: groups, state and checkpoints. The math is in :mod:`hatam.reach`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT, _use_grad_for_differentiable

from . import arguments, checkpoints, fused, narrow, options, paths, sharded, state, straightening
from .subsets import Gathered, all_identical, collect
from .update import State


class HATAM(Optimizer):
    r"""AdamW whose gradient is taken ahead of its iterate once lr falls.

    AdamW updates z, the point to evaluate and to publish. The model holds w. In hidden weights, w is ahead of z along
    AdamW's direction u. The distance is at most γ times the root mean square of the weights, and at most ``horizon``
    steps at the peak lr:

    .. math::
        z \leftarrow z - \mathrm{lr}_t (\hat m / h + \mathrm{wd}\, z), \qquad
        w = z - \kappa_t u, \qquad u = S\, m / h,

    .. math::
        \kappa_t = \min\left(\gamma\, \tau_t \left(1 - \frac{\mathrm{lr}_t}{\mathrm{peak}_t}\right)^2
        \min\left(1, \frac{\mathrm{lr}_t}{\mathrm{fade} \cdot \mathrm{peak}_t}\right)
        \frac{\mathrm{RMS}(z)}{\mathrm{RMS}(u)},\ \mathrm{horizon} \cdot \mathrm{peak}_t\right).

    :mod:`hatam.reach` defines h, τ and the step at which each RMS is measured. τ rises from 0 to 1 as z moves. A
    gradient ahead is a gradient corrected by the smoothed bend of the trajectory. The correction damps sharp
    directions, in which the trajectory bends. w = z until lr falls from its peak, and again after a step at lr = 0, so
    that nothing is to be switched at the end of a schedule. Before that, :meth:`straightened` and :meth:`eval` give z.
    γ = 0 is AdamW bit for bit. With a float lr, so is every step before lr falls. A step takes one gradient. The state
    is AdamW's two buffers and 0-dim scalars. Checkpoints of AdamW can be loaded.

    Args:
        params: parameters, parameter groups or named parameters. Every option can be set per group.
        lr: learning rate, a float or a one-element tensor, >= 0. Start from AdamW's. A schedule must lower it: at a
            constant lr the reach is 0.
        betas: decay rates of m and v, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: decoupled weight decay, >= 0.
        amsgrad: must be False; accepted for compatibility with calls of AdamW.
        gamma: reach as a fraction of the root mean square of a tensor's weights, >= 0; 0 is AdamW.
        travel: length of z's path, in units of RMS(z), over which τ rises from 0 to 1, >= 0; 0 sets τ to 1.
        horizon: largest reach in steps at the peak lr, in [0, inf].
        modulator: "uniform" for S = 1, or "relative" for S = min(h / mean(h), 3), a longer reach in sharp coordinates.
        fade: fraction of the peak lr below which the reach shrinks to 0 with lr, in (0, 1].
        hidden: whether the group's tensors have a reach. None means tensors of two dimensions or more whose name, if
            they have one, is not that of an embedding (see :func:`hatam.state.is_hidden`).
        maximize: maximize the objective.
        foreach: use the multi-tensor path. None uses torch's default.
        capturable: keep all state on the device, for CUDA graphs.
        differentiable: let autograd differentiate through the step.
        fused: use the compiled kernels, one pass over memory: on the CPU the one built with the package, on CUDA the
            Triton one. None uses them if they are available, else ``foreach``. True raises if they are not available;
            with True, the step also undoes a GradScaler's loss scale.
        state_dtype: dtype of the moments: ``torch.bfloat16`` (m with stochastic rounding; v is float32 then),
            ``torch.float32``, or "8bit" (small tensors stay float32; needs torchao). None means the parameter's dtype,
            as in torch.
        bf16_stochastic_round: round bfloat16 parameters and state stochastically, so that small updates are not lost.
        seed: seed of the stochastic rounding, in [0, 2**32).

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, its value, its range and a remedy.
        RuntimeError: ``fused=True`` without a kernel for the parameters, or sharded parameters that are not supported:
            those of FSDP1, partial placements, and DTensors with 8-bit state.

    Example:
        >>> import torch
        >>> from hatam import HATAM
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = HATAM(model.parameters(), lr=0.01)  # before: torch.optim.AdamW(model.parameters(), lr=0.01)
        >>> schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(8, 4)).square().mean().backward()
        ...     optimizer.step()
        ...     schedule.step()
        >>> with optimizer.straightened():  # the weights are z, for validation in mid-training
        ...     loss = model(torch.ones(8, 4)).square().mean()

    Source: the HATAM source document; AdamW is https://arxiv.org/abs/1711.05101.
    """

    _straightened = 0  # number of open straightened() blocks; a class attribute, because pickles do not hold it

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        gamma: float = 0.2,
        travel: float = 15.0,
        horizon: float = 2.0,
        modulator: str = "uniform",
        fade: float = 0.1,
        hidden: bool | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        state_dtype: torch.dtype | str | None = None,
        bf16_stochastic_round: bool = False,
        seed: int = 0,
    ) -> None:
        given = locals()
        defaults = {name: given[name] for name in options.CHECKS}
        options.check(defaults)
        options.check_amsgrad(amsgrad)
        self._forget()
        super().__init__(
            arguments.as_list(params), {**defaults, "lr_peak": 0.0, "reach_started": False, "evaluating": False}
        )

    def _forget(self) -> None:
        """Clear the caches of the last step's tensors."""
        self._gathered: dict[int, Gathered] = {}  # by group index
        self._states: list[State] = []
        self._checked: defaultdict[int, dict[str, Any]] = defaultdict(dict)  # option values, by group index
        self._shards, self._is_sharded = sharded.Shards(), False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group. A refused group changes nothing, because all checks come first or are rolled back."""
        if not isinstance(param_group, dict):
            raise TypeError(f"a parameter group must be a dict with 'params', not {type(param_group).__name__}")
        options.check({**self.defaults, **param_group})
        options.check_amsgrad(param_group.get("amsgrad", False))
        params = param_group["params"]
        if not isinstance(params, (Tensor, set)):
            param_group["params"] = list(params)
            arguments.check_params([p[1] if isinstance(p, tuple) else p for p in param_group["params"]])
        param_group.pop("amsgrad", None)  # this key would mark the group's checkpoints as AdamW's
        super().add_param_group(param_group)
        try:
            options.check_devices(self.param_groups[-1])
            sharded.check_supported(self.param_groups[-1])
            self.param_groups[-1]["lr_peak"] = options.peak_like_lr(self.param_groups[-1])
        except Exception:
            del self.param_groups[-1]
            raise
        state.drop_scalars(self.state, self.param_groups[-1]["params"])  # a parameter added again starts with z = w
        self._is_sharded = self._is_sharded or sharded.any_sharded(self.param_groups[-1]["params"])

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set the state, with defaults for options that a checkpoint of AdamW lacks. A step adds HATAM's entries."""
        checkpoints.check(state["state"], state["param_groups"], state.get("defaults", getattr(self, "defaults", {})))
        super().__setstate__(state)
        self._forget()
        self._is_sharded = any(sharded.any_sharded(group["params"]) for group in self.param_groups)
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            group.pop("amsgrad", None)
            if isinstance(group["lr_peak"], Tensor) and not isinstance(group["lr"], Tensor):
                group["lr_peak"] = float(group["lr_peak"])  # may be on another device

    def __getstate__(self) -> dict[str, Any]:
        self._shards.wait()
        state: dict[str, Any] = super().__getstate__()
        return checkpoints.detach_peaks_({**state, "param_groups": [{**group} for group in state["param_groups"]]})

    def state_dict(self) -> dict[str, Any]:
        """Return torch's state dict, once the pending all-reduces of sharded parameters are done."""
        self._shards.wait()
        return checkpoints.detach_peaks_(super().state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the optimizer's state as torch does, but keep some moments in the dtype of the checkpoint.

        These are moments whose dtype is set by ``state_dtype`` or is wider than the parameter's. Checkpoints of AdamW
        can be loaded. A checkpoint that does not fit is refused before anything changes.

        Raises:
            RuntimeError: the call is inside :meth:`straightened`.
            TypeError, ValueError: groups, shapes or options do not fit, or the state is AMSGrad's.
        """
        straightening.refuse_inside(self, "load_state_dict()")
        if not isinstance(state_dict, dict):
            checkpoints.check_parts(state_dict, self.defaults)
        self._shards.wait()
        with checkpoints.loading(self):
            super().load_state_dict(state_dict)

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @_use_grad_for_differentiable
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform one optimization step.

        Args:
            closure: reevaluates the model and returns the loss (optional).

        Raises:
            TypeError, ValueError: a changed option is invalid. No parameter changes then.
            RuntimeError: a gradient is sparse, or the call is inside :meth:`straightened` or after :meth:`eval`; no
                parameter changes then. Or a parameter's data has a new shape; earlier groups have changed then.
        """
        if self._straightened:
            straightening.refuse_inside(self, "step()")
        if any(group["evaluating"] for group in self.param_groups):
            raise RuntimeError(straightening.EVALUATING)
        if self._is_sharded:
            self._shards.wait()
        check_capture = getattr(self, "_accelerator_graph_capture_health_check", None)  # torch 2.11 and later
        (check_capture or self._cuda_graph_capture_health_check)()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        grads = [[p.grad for p in group["params"]] for group in self.param_groups]
        options.check_step(self.param_groups, grads, self._checked)
        found_inf = getattr(self, "found_inf", None)  # set by a GradScaler
        if found_inf is not None and not fused.skips_by_itself(self.param_groups):
            if found_inf.item():
                return loss  # the GradScaler skips this step
            found_inf = None
        if not torch.compiler.is_compiling() and not all_identical(self.state.values(), self._states):
            self._gathered.clear()
        first = 0
        for i, group in enumerate(self.param_groups):
            if any(g is not None for g in grads[i]):
                self._step_group(i, first, group, grads[i], found_inf)
            first += len(group["params"])
        if self._is_sharded:
            self._shards.send()
        return loss

    def _step_group(
        self, i: int, first: int, group: dict[str, Any], grads: list[Tensor | None], found_inf: Tensor | None
    ) -> None:
        """Step a group's parameters that have gradients: first those with a reach, then the others."""
        lr_peak, grad_scale = options.raise_peak(group, found_inf), getattr(self, "grad_scale", None)
        o = options.resolve(group, lr_peak, grad_scale, found_inf)
        gathered = self._gather(i, first, group, grads)
        if gathered.columns["reach"] and not group["reach_started"]:
            group["reach_started"] = isinstance(o.reach_factor, Tensor) or o.reach_factor > 0
        run = paths.run_hatam if group["reach_started"] else paths.run_adamw
        for subset in gathered.subsets(group["reach_started"]):
            own_grads = gathered.grads[subset.grad_places]
            if self._is_sharded:
                self._shards.run(run, subset, own_grads, group, o)
            else:
                run(subset, own_grads, group, o)
        gathered.grads.clear()  # so that zero_grad() can free their memory

    def _gather(self, i: int, first: int, group: dict[str, Any], grads: list[Tensor | None]) -> Gathered:
        """Return the tensors of a group's step, from the cache if nothing has changed."""
        compiling = torch.compiler.is_compiling()
        gathered = self._gathered.get(i)
        if compiling or gathered is None or not gathered.is_current(group, grads, first):
            gathered = Gathered()
            self._init_group(group, gathered.params, gathered.grads, gathered.param_indices, *gathered.columns.values())
            if not compiling:
                gathered.remember(group, grads, first, [self.state[p] for p in gathered.params])
                self._gathered[i], self._states = gathered, list(self.state.values())
        return gathered

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Whether :meth:`step` handles a GradScaler's loss scale and skipped steps. If so, Lightning does not clip."""
        return all(group["fused"] for group in self.param_groups)

    @contextmanager
    def straightened(self) -> Iterator[None]:
        """Set the parameters to z, the straightened point, for the block; at its end restore them bit for bit.

        Use it to validate or to save a model in mid-training. Before lr falls, and after a step at lr = 0, nothing
        changes. The block keeps a copy of all parameters that may have an offset.

        Raises:
            RuntimeError: from ``step()``, ``load_state_dict()``, ``eval()`` and ``train()`` inside the block.

        Example:
            >>> import torch
            >>> from hatam import HATAM
            >>> model = torch.nn.Linear(2, 1)
            >>> optimizer = HATAM(model.parameters())
            >>> with optimizer.straightened():
            ...     accuracy = model(torch.ones(1, 2))
        """
        self._shards.wait()
        self._straightened += 1
        try:
            groups = options.with_first_index(self.param_groups)
            with straightening.straightened([one for one in groups if not one[1]["evaluating"]], self.state):
                yield
        finally:
            self._straightened -= 1

    def eval(self) -> None:
        """Set the parameters to z, to evaluate or save the model. :meth:`step` raises until :meth:`train` is called."""
        self._switch(evaluating=True)

    def train(self, mode: bool = True) -> None:
        """Set the parameters to w again, up to rounding. ``train(False)`` is :meth:`eval`.

        Parameters that no longer require a gradient stay at z.
        """
        self._switch(evaluating=not mode)

    @torch.no_grad()
    def _switch(self, *, evaluating: bool) -> None:
        straightening.refuse_inside(self, "eval() or train()")
        self._shards.wait()
        how = narrow.undo_offset_ if evaluating else narrow.redo_offset_
        for first, group in options.with_first_index(self.param_groups):
            if group["evaluating"] != evaluating:
                frozen = [] if evaluating else [not p.requires_grad for p in group["params"]]
                straightening.move([(first, group)], self.state, how, skipped=frozen)
                group["evaluating"] = evaluating

    def _init_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        param_indices: list[int],
        *columns: list[Tensor],
    ) -> None:
        """Append to the lists the group's parameters that have gradients, and their gradients, indices and state.

        Parameters with a reach come first. Indices count all parameters of the optimizer. Each of ``columns`` is for
        one key of ``STATE``. torch.compile runs a method of this name untraced, and traces only the lists it fills.
        """
        first = next(first for first, own in options.with_first_index(self.param_groups) if own is group)
        straightening.drop_lost_reaches(first, group, self.state)
        collect(first, group, self.state, params, grads, param_indices, *columns)
