"""HATAM as a :class:`torch.optim.Optimizer`: groups, state and hosts. The math is in :mod:`hatam.update`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast, overload

import torch
from torch import Tensor
from torch.optim.optimizer import (
    Optimizer,
    ParamsT,
    _get_scalar_dtype,
    _use_grad_for_differentiable,
)

from . import arguments, checkpoints, fused, norms, options, paths, sharded, straightening
from .forms import FORMS
from .fused.batches import Division
from .storage import HATAM_STATE, new_moment

ADAMW_STATE = ("step", "exp_avg", "exp_avg_sq")
STATE = (*ADAMW_STATE, *HATAM_STATE)


class HATAM(Optimizer):
    r"""AdamW that takes its gradient further downhill, which corrects for the smoothed bend of the trajectory.

    In the default form "decoupled" AdamW runs on a point z, while the parameters w that the model computes with are
    displaced from it along the averaged gradient e, further in coordinates that look sharp:

    .. math::
        z_t = z_{t-1} - \mathrm{lr}_t \left( \hat m_t / h_t + \mathrm{wd}\, z_{t-1} \right), \qquad
        w_t = z_t - d_t, \qquad d_t = \rho_t\, S_t\, e_t / h_t,

    .. math::
        h_t = \sqrt{\hat v_t} + \varepsilon, \qquad S_t = \min(h_t / \mathrm{mean}(h_{t-1}), \mathrm{cap}),

    with :math:`\rho_t` such that each tensor is displaced by the share :math:`\gamma / \lVert w_0 \rVert` of its
    weights, at most a quarter, and by less where its gradient swings or fades: beside the first weights :math:`w_0` the
    whole displacement has the Euclidean norm :math:`\gamma`, as SAM's perturbation has its ρ. It begins small, and once
    lr has fallen to ``fade`` of its peak, it runs out with lr. Unless γ is given, it is also capped by how far AdamW
    may have gone (``radius_cap``).

    Taking gradients there is straightening the trajectory by :math:`c_t = \mathrm{EMA}(g_t - g_{t-1})` in other
    coordinates. After a step at lr = 0, w is z where it got a gradient, and there is nothing to switch; before that
    :meth:`straightened` gives z. The forms "raw" and "published" correct the gradient instead,
    :math:`\hat g = g + \gamma S c`; see :mod:`hatam.forms`.

    One gradient a step. State: AdamW's two buffers (decoupled with βc = β1), else a third; and 0-dim scalars.

    Args:
        params: parameters, parameter groups or named parameters. Every option can be set per group.
        lr: learning rate, a float or a one-element tensor, >= 0. Start from AdamW's.
        betas: rates of m and v, each in [0, 1).
        eps: added to the denominator, >= 0; > 0 in the forms raw and published with the relative modulator.
        weight_decay: decoupled weight decay, >= 0.
        amsgrad: False; it is there for calls that were written for AdamW.
        gamma: strength of the correction, >= 0; 0 is AdamW, bit for bit. In the decoupled form it is the radius of
            the displacement, in the unit that ``radius`` says. None means for "absolute" 0.5, or 0.35 where
            1 − βc² > 4 (1 − β2), as at the default betas; 0.005 for "relative", or else 1.
        beta_c: rate of e, in [0, 1). None means β1 (decoupled) or 0.9 (raw, published).
        modulator: "relative", or "uniform" for S = 1, which is ATAM.
        modulator_cap: largest S, in (0, inf]. None means 1 (decoupled), 3 (raw) or no cap (published).
        form: "decoupled", "raw" or "published".
        radius: "absolute", so that γ is the norm of d over all of the optimizer's parameters as they are at the first
            step, in every tensor by its weights, with which it grows; "relative", so that the root mean square of d is
            γ times that of each tensor's weights; or "lr", so that ρ is in units of the peak lr; see
            :mod:`hatam.radii`. None means "absolute". Decoupled only.
        radius_cap: largest root mean square of d over all parameters, beside the first weights, as a share of the peak
            lr times the steps so far, about as far as AdamW may have gone; in (0, inf]. None means 0.02 where ``gamma``
            is None, which a low lr makes the smaller of the two, and else inf, no cap. ``radius="absolute"`` only.
        fade: share of the peak lr below which the radius runs out with lr, in (0, 1]. None means 0.1. Decoupled only.
        maximize: maximize the objective.
        foreach: use the multi-tensor path. None chooses as torch does.
        capturable: keep all state on the device, for CUDA graphs.
        differentiable: let autograd through the step.
        fused: use the compiled kernels, one pass over memory: on the CPU the one built with the package, on CUDA the
            Triton one. None uses them where they are at hand, and else ``foreach``; True refuses where they are not,
            and the step then also undoes a GradScaler's loss scale.
        state_dtype: in what m and e are kept: ``torch.bfloat16`` with stochastic rounding (v is float32 then),
            ``torch.float32``, or "8bit" (m, v and e, but of small tensors; needs torchao). None means the parameter's
            own dtype, as in torch.
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
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     model(torch.ones(8, 4)).square().mean().backward()
        ...     optimizer.step()
        >>> with optimizer.straightened():  # z, to validate in mid-training
        ...     loss = model(torch.ones(8, 4)).square().mean()

    Source: the HATAM source document; AdamW is https://arxiv.org/abs/1711.05101.
    """

    _straightened = 0  # how many straightened() blocks are open; on the class, so that pickles need not hold it

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        gamma: float | None = None,
        beta_c: float | None = None,
        modulator: str = "relative",
        modulator_cap: float | None = None,
        form: str = "decoupled",
        radius: str | None = None,
        radius_cap: float | None = None,
        fade: float | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        state_dtype: torch.dtype | str | None = None,
        bf16_stochastic_round: bool = False,
        seed: int = 0,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "gamma": gamma,
            "beta_c": beta_c,
            "modulator": modulator,
            "modulator_cap": modulator_cap,
            "form": form,
            "radius": radius,
            "radius_cap": radius_cap,
            "fade": fade,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "state_dtype": state_dtype,
            "bf16_stochastic_round": bf16_stochastic_round,
            "seed": seed,
            "lr_peak": 0.0,
            "start_norm": None,
            "start_numel": None,
        }
        arguments.check(defaults)
        arguments.check_radius_cap(defaults)
        arguments.check_amsgrad(amsgrad)
        self._divisions: dict[int, Division] = {}
        self._shards, self._is_cut = sharded.Shards(), False
        self._begun = False  # whether a step at an lr above 0 is known to have been
        super().__init__(arguments.listed(params), defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group in mid-training; its options are checked first, so a refused group leaves nothing behind."""
        if not isinstance(param_group, dict):
            raise TypeError(f"a parameter group must be a dict with 'params', not {type(param_group).__name__}")
        arguments.check({**self.defaults, **param_group})
        arguments.check_radius_cap({**self.defaults, **param_group})
        arguments.check_amsgrad(param_group.get("amsgrad", False))
        params = param_group["params"]
        if not isinstance(params, (Tensor, set)):
            param_group["params"] = list(params)
            arguments.check_params([p[1] if isinstance(p, tuple) else p for p in param_group["params"]])
        param_group.pop("amsgrad", None)  # which would mark its checkpoints as AdamW's
        super().add_param_group(param_group)
        try:
            arguments.check_devices(self.param_groups[-1])
            options.complete(self.param_groups[-1])
            sharded.check(self.param_groups[-1])
            self.param_groups[-1]["lr_peak"] = paths.peak_of_kind(self.param_groups[-1])
            norms.keep(self.param_groups[-1], norms.of_group(self.param_groups[-1]))
        except Exception:
            del self.param_groups[-1]
            raise
        self._is_cut = self._is_cut or sharded.any_cut(self.param_groups[-1]["params"])

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Fill in what an AdamW checkpoint lacks; its state gets HATAM's entries at the next step."""
        for key in ("radius_cap", "start_numel"):  # which an older version's pickle lacks
            state.get("defaults", {}).setdefault(key, None)
        checkpoints.check(state["state"], state["param_groups"], state.get("defaults", getattr(self, "defaults", {})))
        super().__setstate__(state)
        self._divisions, self._shards = {}, sharded.Shards()  # which hold on to the tensors of the last step
        self._is_cut = any(sharded.any_cut(group["params"]) for group in self.param_groups)
        self._begun = False
        for group in self.param_groups:
            for key, value in self.defaults.items():
                group.setdefault(key, value)
            options.complete(group)
            group.pop("amsgrad", None)
            for key, kind in (("start_norm", float), ("start_numel", int)):
                group[key] = None if group[key] is None else kind(group[key])

    def __getstate__(self) -> dict[str, Any]:
        self._shards.settle()
        state: dict[str, Any] = super().__getstate__()
        return checkpoints.without_graph({**state, "param_groups": [{**group} for group in state["param_groups"]]})

    def state_dict(self) -> dict[str, Any]:
        """As torch's; sums of sharded parameters that are still on their way are awaited."""
        self._shards.settle()
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
            TypeError, ValueError: a γ that a group was given since is out of range.
            RuntimeError: a gradient is sparse, or the step is inside :meth:`straightened`. Nothing has moved then.
        """
        self._refuse_while_straightened("step()")
        self._shards.settle()
        check_capture = getattr(self, "_accelerator_graph_capture_health_check", None)  # torch 2.11 and later
        (check_capture or self._cuda_graph_capture_health_check)()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        arguments.check_step(self.param_groups)
        for group in self.param_groups:
            options.complete(group)  # a form that was changed since may have a radius now
        amp = {key: getattr(self, key) for key in ("grad_scale", "found_inf") if hasattr(self, key)}
        found_inf = amp.get("found_inf")
        if found_inf is not None and not fused.skips_by_itself(self.param_groups):
            if found_inf.item():
                return loss  # a GradScaler's skipped step: nothing moves
            found_inf = None
        self._begun = self._begun or norms.has_begun(self.param_groups, bool(self.state))
        start = norms.at_first_step(self.param_groups, self._begun)
        for first, group in options.numbered(self.param_groups):
            numbers = [i for i, p in enumerate(group["params"], first) if p.grad is not None]
            params: list[Tensor] = []
            grads: list[Tensor] = []
            columns: dict[str, list[Tensor]] = {key: [] for key in STATE}
            self._init_group(group, params, grads, *columns.values())
            if not params:
                continue
            kept = {key: column for key, column in columns.items() if column}
            is_adamw = len(kept) == len(ADAMW_STATE)
            peak = group["lr_peak"] if is_adamw else paths.raise_peak(group, found_inf)
            o = options.resolve(group, peak, amp.get("grad_scale"), found_inf, start)
            run = paths.run_adamw if is_adamw else paths.run_form
            more: dict[str, Any] = amp if is_adamw else {"divisions": self._divisions}
            if self._is_cut:
                run = partial(run, group=group, o=o, **more)
                self._shards.run(run, params, grads, kept, numbers, None if is_adamw else o)
            else:
                run(params, grads, kept, numbers, group=group, o=o, **more)
        return loss

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Where True, a GradScaler leaves loss scale and skipped steps to :meth:`step`, and Lightning does not clip."""
        return all(group["fused"] for group in self.param_groups)

    @contextmanager
    def straightened(self) -> Iterator[None]:
        """Inside, the parameters are z, the straightened point; on leaving, exactly what they were.

        For validation or for saving a model in mid-training. After a step at lr = 0 it changes nothing of what got a
        gradient in it. Weights that are put back later, without the optimizer's state, need :meth:`weights_replaced`.
        The forms "raw" and "published" have no displacement: there it never changes anything. Holds one copy of the
        displaced parameters meanwhile, and of one tensor at a time some float32 ones as it begins.

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
        self._shards.settle()
        self._straightened += 1
        try:
            with straightening.straightened(self.param_groups, self.state):
                yield
        finally:
            self._straightened -= 1

    def weights_replaced(self) -> None:
        """Tell the optimizer that its parameters were given other weights, which nothing displaces.

        To be called after an early stopping's best weights were put back, or any that were saved inside
        :meth:`straightened`, if the optimizer's state was not put back with them. Else the next step, and
        :meth:`straightened`, would add the displacement of the weights that they replace.

        Raises:
            RuntimeError: inside :meth:`straightened`, which puts the old weights back on leaving.

        Example:
            >>> import torch
            >>> from hatam import HATAM
            >>> model = torch.nn.Linear(2, 1)
            >>> optimizer = HATAM(model.parameters())
            >>> with optimizer.straightened():
            ...     best = {name: x.clone() for name, x in model.state_dict().items()}
            >>> _ = model.load_state_dict(best)
            >>> optimizer.weights_replaced()
        """
        self._refuse_while_straightened("weights_replaced()")
        for state in self.state.values():
            if "displacement_radius" in state:
                state["displacement_radius"].zero_()

    def _init_group(
        self, group: dict[str, Any], params: list[Tensor], grads: list[Tensor], *columns: list[Tensor]
    ) -> None:
        """Append the group's parameters that have gradients, their gradients, and their completed states by ``STATE``.

        torch.compile runs a method of this name as it is and traces only the lists that it fills.
        """
        params.extend([p for p in group["params"] if p.grad is not None])
        grads.extend([cast(Tensor, p.grad) for p in params])
        for p in params:
            state = self.state[p]
            if "step" not in state:
                on_device = fused.counts_on_device(group, p)
                state["step"] = torch.zeros(
                    (),
                    dtype=torch.float32 if on_device else _get_scalar_dtype(),
                    device=p.device if on_device else "cpu",
                )
                for key in ADAMW_STATE[1:]:
                    state[key] = new_moment(p, key, group["state_dtype"])
        states = [self.state[p] for p in params]
        if group["gamma"] != 0 or any(not state.keys().isdisjoint(HATAM_STATE) for state in states):
            # What is prepared depends on neither lr nor radius: on a device these cost kernels, so not twice a step.
            FORMS[group["form"]].prepare(states, params, options.resolve({**group, "lr": 0.0}, 0.0))
        for key, column in zip(STATE, columns, strict=True):
            if all(key in state for state in states):  # else it is of options that the group had once
                column.extend([state[key] for state in states])

    def _refuse_while_straightened(self, what: str) -> None:
        if self._straightened:
            raise RuntimeError(f"{what} inside straightened() would be undone on leaving it: leave the block first")
