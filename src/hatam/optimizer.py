"""HATAM as a :class:`torch.optim.Optimizer`: groups, state and hosts. The math is in :mod:`hatam.reach`."""

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
    r"""AdamW whose gradient is taken ahead of its iterate once lr has begun to fall.

    AdamW runs on z, the point to evaluate and to publish. The parameters w of the model are ahead of z in hidden
    weights, along AdamW's own direction u, by up to γ times the root mean square of the weights, and by no more than
    some steps at the peak lr:

    .. math::
        z \leftarrow z - \mathrm{lr}_t (\hat m / h + \mathrm{wd}\, z), \qquad
        w = z - \kappa_t u, \qquad u = S\, m / h,

    .. math::
        \kappa_t = \min\left(\gamma\, \tau_t \left(1 - \frac{\mathrm{lr}_t}{\mathrm{peak}_t}\right)^2
        \min\left(1, \frac{\mathrm{lr}_t}{\mathrm{fade} \cdot \mathrm{peak}_t}\right)
        \frac{\mathrm{RMS}(z)}{\mathrm{RMS}(u)},\ \mathrm{horizon} \cdot \mathrm{peak}_t\right).

    See :mod:`hatam.reach` for h, for τ, which is 0 at first and 1 once z has come far, and for when the sizes are
    measured. A gradient ahead on the trajectory is one
    corrected by the trajectory's smoothed bend; along sharp directions, where it bends, the correction damps. Until lr
    falls from its peak w is z, and after a step at lr = 0 it is z again: nothing to switch at the end of a schedule.
    Before that :meth:`straightened` or :meth:`eval` give z. γ = 0 is AdamW to the last bit, and so is the time until
    lr falls where lr is a float. One gradient a step. State: AdamW's two buffers, and 0-dim scalars. A checkpoint of
    AdamW loads.

    Args:
        params: parameters, parameter groups or named parameters. Every option can be set per group.
        lr: learning rate, a float or a one-element tensor, >= 0. Start from AdamW's. A schedule has to lower it in
            training: at a constant lr there is no reach.
        betas: rates of m and v, each in [0, 1).
        eps: added to the denominator, >= 0.
        weight_decay: decoupled weight decay, >= 0.
        amsgrad: False; it is there for calls that were written for AdamW.
        gamma: reach as a share of the root mean square of a tensor's weights, >= 0; 0 is AdamW.
        travel: length of z's path, in sizes of the tensor, over which τ rises from 0 to 1, >= 0; 0 sets τ to 1.
        horizon: largest reach in steps at the peak lr, in [0, inf].
        modulator: "uniform" for S = 1, or "relative" for S = min(h / mean(h), 3), further where a coordinate looks
            sharp.
        fade: share of the peak lr below which the reach runs out with lr, in (0, 1].
        hidden: whether the group's tensors have a reach. None means those of two dimensions or more whose name, where
            parameters have names, is not that of an embedding (see :func:`hatam.state.is_hidden`).
        maximize: maximize the objective.
        foreach: use the multi-tensor path. None chooses as torch does.
        capturable: keep all state on the device, for CUDA graphs.
        differentiable: let autograd through the step.
        fused: use the compiled kernels, one pass over memory: on the CPU the one built with the package, on CUDA the
            Triton one. None uses them where they are at hand, and else ``foreach``; True refuses where they are not,
            and the step then also undoes a GradScaler's loss scale.
        state_dtype: in what m is kept: ``torch.bfloat16`` with stochastic rounding (v is float32 then),
            ``torch.float32``, or "8bit" (m and v, but of small tensors; needs torchao). None means the parameter's own
            dtype, as in torch.
        bf16_stochastic_round: round bfloat16 parameters and their state at random, so that small updates are not lost.
        seed: of the rounding at random, in [0, 2**32).

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, its value, its range and a remedy.
        RuntimeError: ``fused=True`` where there is no kernel for the parameters, or sharded parameters that are not
            supported: FSDP1's, partial placements, and 8-bit state of sharded ones.

    Example:
        >>> import torch
        >>> from hatam import HATAM
        >>> _ = torch.manual_seed(0)
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = HATAM(model.parameters(), lr=0.01)  # was: torch.optim.AdamW(model.parameters(), lr=0.01)
        >>> schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(8, 4)).square().mean().backward()
        ...     optimizer.step()
        ...     schedule.step()
        >>> with optimizer.straightened():  # z, to validate in mid-training
        ...     loss = model(torch.ones(8, 4)).square().mean()

    Source: the HATAM source document; AdamW is https://arxiv.org/abs/1711.05101.
    """

    _straightened = 0  # how many straightened() blocks are open; on the class, so that pickles need not hold it

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
        """Empty what is known of the tensors of the last step."""
        self._gathered: dict[int, Gathered] = {}  # by the index of the group
        self._states: list[State] = []
        self._checked: defaultdict[int, dict[str, Any]] = defaultdict(dict)  # options, by the index of the group
        self._shards, self._is_sharded = sharded.Shards(), False

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group in mid-training; its options are checked first, so a refused group leaves nothing behind."""
        if not isinstance(param_group, dict):
            raise TypeError(f"a parameter group must be a dict with 'params', not {type(param_group).__name__}")
        options.check({**self.defaults, **param_group})
        options.check_amsgrad(param_group.get("amsgrad", False))
        params = param_group["params"]
        if not isinstance(params, (Tensor, set)):
            param_group["params"] = list(params)
            arguments.check_params([p[1] if isinstance(p, tuple) else p for p in param_group["params"]])
        param_group.pop("amsgrad", None)  # which would mark its checkpoints as AdamW's
        super().add_param_group(param_group)
        try:
            options.check_devices(self.param_groups[-1])
            sharded.check(self.param_groups[-1])
            self.param_groups[-1]["lr_peak"] = options.peak_of_kind(self.param_groups[-1])
        except Exception:
            del self.param_groups[-1]
            raise
        state.drop_scalars(self.state, self.param_groups[-1]["params"])  # who was here before goes on from there
        self._is_sharded = self._is_sharded or sharded.any_sharded(self.param_groups[-1]["params"])

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Fill in what an AdamW checkpoint lacks; its state gets HATAM's entries at the next step."""
        checkpoints.check(state["state"], state["param_groups"], state.get("defaults", getattr(self, "defaults", {})))
        super().__setstate__(state)
        self._forget()
        self._is_sharded = any(sharded.any_sharded(group["params"]) for group in self.param_groups)
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            group.pop("amsgrad", None)
            if isinstance(group["lr_peak"], Tensor) and not isinstance(group["lr"], Tensor):
                group["lr_peak"] = float(group["lr_peak"])  # of a device, perhaps another one

    def __getstate__(self) -> dict[str, Any]:
        self._shards.wait()
        state: dict[str, Any] = super().__getstate__()
        return checkpoints.without_graph({**state, "param_groups": [{**group} for group in state["param_groups"]]})

    def state_dict(self) -> dict[str, Any]:
        """As torch's; sums of sharded parameters that are still on their way are awaited."""
        self._shards.wait()
        return checkpoints.without_graph(super().state_dict())

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the optimizer's state, as torch does, but keep state in the dtype that it was saved in where that was
        chosen (``state_dtype``) or is wider than the parameter's.

        A checkpoint of AdamW fits too. One that does not fit is refused before anything has changed.

        Raises:
            RuntimeError: inside :meth:`straightened`.
            TypeError, ValueError: groups, shapes or options do not fit, or the state is AMSGrad's.
        """
        self._refuse_while_straightened("load_state_dict()")
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
            TypeError, ValueError: an option that a group was given since is out of range.
            RuntimeError: a gradient is sparse, or the step is inside :meth:`straightened` or after :meth:`eval`.
                Nothing has moved then. Also where a parameter was given data of another shape; groups before its own
                have moved then.
        """
        self._refuse_while_straightened("step()")
        if any(group["evaluating"] for group in self.param_groups):
            raise RuntimeError("step() needs the weights at which gradients are taken; call optimizer.train() first")
        self._shards.wait()
        check_capture = getattr(self, "_accelerator_graph_capture_health_check", None)  # torch 2.11 and later
        (check_capture or self._cuda_graph_capture_health_check)()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        grads = [[p.grad for p in group["params"]] for group in self.param_groups]
        options.check_step(self.param_groups, grads, self._checked)
        found_inf = getattr(self, "found_inf", None)  # of a GradScaler
        if found_inf is not None and not fused.skips_by_itself(self.param_groups):
            if found_inf.item():
                return loss  # nothing moves
            found_inf = None
        if not torch.compiler.is_compiling() and not all_identical(self.state.values(), self._states):
            self._gathered.clear()
        first = 0
        for i, group in enumerate(self.param_groups):
            if any(g is not None for g in grads[i]):
                self._step_group(i, first, group, grads[i], found_inf)
            first += len(group["params"])
        self._shards.send()
        return loss

    def _step_group(
        self, i: int, first: int, group: dict[str, Any], grads: list[Tensor | None], found_inf: Tensor | None
    ) -> None:
        """A step of a group's parameters that have gradients: of those with a reach, then of the others."""
        lr_peak, grad_scale = options.raise_peak(group, found_inf), getattr(self, "grad_scale", None)
        o = options.resolve(group, lr_peak, grad_scale, found_inf)
        gathered = self._gather(i, first, group, grads)
        if gathered.state["reach"] and not group["reach_started"]:
            group["reach_started"] = isinstance(o.reach_factor, Tensor) or o.reach_factor > 0
        run = paths.run_hatam if group["reach_started"] else paths.run_adamw
        for subset in gathered.subsets(group["reach_started"]):
            own_grads = gathered.grads[subset.grad_places]
            if self._is_sharded:
                self._shards.run(run, subset, own_grads, o, group, o)
            else:
                run(subset, own_grads, group, o)
        gathered.grads.clear()  # whose memory zero_grad() may want to free

    def _gather(self, i: int, first: int, group: dict[str, Any], grads: list[Tensor | None]) -> Gathered:
        """The tensors of a group's step, those of the step before where nothing has changed."""
        compiling = torch.compiler.is_compiling()
        gathered = self._gathered.get(i)
        if compiling or gathered is None or not gathered.is_current(group, grads, first):
            gathered = Gathered()
            self._init_group(group, gathered.params, gathered.grads, gathered.param_indices, *gathered.state.values())
            if not compiling:
                gathered.remember(group, grads, first, [self.state[p] for p in gathered.params])
                self._gathered[i], self._states = gathered, list(self.state.values())
        return gathered

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Where True, a GradScaler leaves loss scale and skipped steps to :meth:`step`, and Lightning does not clip."""
        return all(group["fused"] for group in self.param_groups)

    @contextmanager
    def straightened(self) -> Iterator[None]:
        """Inside, the parameters are z, the straightened point; on leaving, exactly what they were.

        For validation or for saving a model in mid-training. Before lr falls, and after a step at lr = 0, it changes
        nothing. Holds one copy of the parameters that may have an offset meanwhile.

        Raises:
            RuntimeError: ``step()`` or ``load_state_dict()`` is called inside.

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
        """Bring the parameters to z, to evaluate or to save the model. A step is refused until :meth:`train`."""
        self._switch(evaluating=True)

    def train(self, mode: bool = True) -> None:
        """Bring the parameters back to w, up to rounding; ``train(False)`` is :meth:`eval`.

        Parameters that do not require a gradient any more stay at z.
        """
        self._switch(evaluating=not mode)

    @torch.no_grad()
    def _switch(self, *, evaluating: bool) -> None:
        self._refuse_while_straightened("eval() or train()")
        self._shards.wait()
        how = narrow.undo_offset_ if evaluating else narrow.redo_offset_
        for first, group in options.with_first_index(self.param_groups):
            if group["evaluating"] != evaluating:
                frozen = [] if evaluating else [not p.requires_grad for p in group["params"]]
                straightening.move([(first, group)], self.state, how, spared=frozen)
                group["evaluating"] = evaluating

    def _init_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        param_indices: list[int],
        *columns: list[Tensor],
    ) -> None:
        """Append the group's parameters that have gradients, those with a reach first, their gradients, their indices
        among all parameters, and their completed states by ``STATE``.

        torch.compile runs a method of this name as it is and traces only the lists that it fills.
        """
        first = next(first for first, own in options.with_first_index(self.param_groups) if own is group)
        straightening.remove_reaches(first, group, self.state)
        collect(first, group, self.state, params, grads, param_indices, *columns)

    def _refuse_while_straightened(self, what: str) -> None:
        if self._straightened:
            raise RuntimeError(f"{what} inside straightened() would be undone on leaving it: leave the block first")
