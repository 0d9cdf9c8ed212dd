"""Telemetry of gradients and state, computed by a post-step hook every few steps.

Results stay on the device until they are read. An optimizer without telemetry does no extra work. ``docs/telemetry.md``
shows healthy and unhealthy values.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import options, paths, sharded, storage
from .fused.batches import in_layout_of
from .modulators import CAP
from .optimizer import HATAM
from .reports import MEANS, NORMS, Report, flat, group_numbers, to_json_lines, to_tensorboard, with_ratios
from .state import has_offset, real, real_state
from .update import Options, State

__all__ = ["Report", "Telemetry", "flat", "observe", "to_json_lines", "to_tensorboard"]

SAMPLED = 1024
"""The largest number of coordinates of a tensor, evenly spaced, from which quantiles of S are computed."""
QUANTILES = {"modulator_q05": 0.05, "modulator_q50": 0.5, "modulator_q95": 0.95}


class Telemetry:
    """Observes a HATAM optimizer every few steps.

    A report has these numbers for each parameter, and for each group as if it were one tensor:

    - ``grad_norm``, ``bend_norm``, ``bend_ratio``: ‖g‖, ‖c‖ and ‖c‖ / ‖g‖, with c = (1 − β1)(g − m) the bend.
    - ``modulator_mean``, ``…_max``, ``…_q05``, ``…_q50``, ``…_q95``, ``capped``: mean, maximum and quantiles of S, and
      the share of coordinates at its cap. Quantiles are of at most 1,024 coordinates, and only for parameters.
    - ``reach`` (only for parameters), ``offset_norm``, ``offset_ratio``: κ, ‖κ u‖, ‖κ u‖ / ‖w‖.
    - ``param_norm``: ‖w‖.
    - ``bend_update_cosine``: the cosine between c and the last update.
    - ``update_norm``, ``update_ratio``: ‖lr (m̂ / h + wd w)‖, and its ratio to ‖w‖.
    - ``effective_step``: the mean of lr / h, the factor of m̂ in the update.

    A parameter without a reach has no numbers of offset and modulator. With β1 = 0, c cannot be computed from the state
    after a step, and numbers that depend on it are NaN.

    Args:
        optimizer: the optimizer, on any code path except under torch.compile.
        every: steps from one observation to the next, >= 1. An observation costs as much as 6 to 25 steps.
        write: called with the report of each observation after its step. The call waits for the device.

    Raises:
        TypeError, ValueError: not a HATAM optimizer, or ``every`` is not an integer of at least 1.

    Example:
        >>> import torch
        >>> from hatam import HATAM
        >>> from hatam.telemetry import Telemetry
        >>> model = torch.nn.Linear(4, 1)
        >>> optimizer = HATAM(model.named_parameters(), lr=0.01)
        >>> telemetry = Telemetry(optimizer, every=1)
        >>> for step in range(50):
        ...     optimizer.param_groups[0]["lr"] = 0.01 * (1 - step / 50)
        ...     optimizer.zero_grad()
        ...     model(torch.ones(8, 4)).square().mean().backward()
        ...     optimizer.step()
        >>> report = telemetry.read()
        >>> report["step"], sorted(report["params"]), report["groups"][0]["offset_norm"] < 0.25
        (50, ['bias', 'weight'], True)
        >>> telemetry.detach()
    """

    def __init__(self, optimizer: HATAM, every: int = 200, write: Callable[[Report], None] | None = None) -> None:
        if not isinstance(optimizer, HATAM):
            raise TypeError(
                f"optimizer must be a HATAM, not {type(optimizer).__name__}; pass the optimizer inside its wrapper"
            )
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every={every!r} must be an integer of at least 1")
        self.optimizer, self.every, self.write = optimizer, every, write
        counts = (int(state["step"].item()) for state in optimizer.state.values() if "step" in state)
        self.steps = max(counts, default=0)
        self._found: tuple[int, list[dict[str, dict[str, Tensor]]]] | None = None
        self._hook = optimizer.register_step_post_hook(self._after_step)

    def detach(self) -> None:
        """Stop observing. The last observation can still be read."""
        self._hook.remove()

    def read(self) -> Report | None:
        """The report of the last observation, or None before the first. Waits for the device.

        Returns:
            ``{"step": …, "groups": [{key: number}, …], "params": {name: {key: number}}}``. ``step`` counts on from the
            optimizer's step at the start of observation. The name of a parameter is followed by the number of its group
            if several groups have the name.
        """
        if self._found is None:
            return None
        step, groups = self._found
        tensors = [x for params in groups for found in params.values() for x in found.values()]
        numbers = iter(_to_floats(tensors))
        params = [{name: {key: next(numbers) for key in found} for name, found in of.items()} for of in groups]
        made = [group_numbers(list(of.values())) for of in params]
        counts = Counter(name for of in params for name in of)
        named = {
            name if counts[name] == 1 else f"{name} of group {i}": with_ratios(found)
            for i, of in enumerate(params)
            for name, found in of.items()
        }
        return {"step": step, "groups": [with_ratios(group) for group in made], "params": named}

    @torch.no_grad()
    def losses(self, loss: Callable[[], Any]) -> dict[str, float]:
        """The loss at the present parameters, and at the straightened point z.

        Args:
            loss: returns the loss of the model at its present parameters, on data of your choice.
        """
        at_w = float(loss())
        with self.optimizer.straightened():
            return {"loss_at_w": at_w, "loss_at_z": float(loss())}

    @torch.no_grad()
    def _after_step(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        self.steps += 1
        if self.steps % self.every:
            return
        groups = [_observed(self.optimizer, i) for i in range(len(self.optimizer.param_groups))]
        self._found = (self.steps, groups)
        if self.write is not None:
            report = self.read()
            if report is not None:
                self.write(report)


def _observed(optimizer: HATAM, number: int) -> dict[str, dict[str, Tensor]]:
    """The observations of a group's parameters that have gradients, by name."""
    group = optimizer.param_groups[number]
    o = options.resolve(group, group["lr_peak"], getattr(optimizer, "grad_scale", None))
    without_scale = options.resolve(group, group["lr_peak"])
    stepped = [p.grad is not None and p.numel() and "step" in optimizer.state.get(p, {}) for p in group["params"]]
    seen = [i for i, known in enumerate(stepped) if known]
    params = [group["params"][i] for i in seen]
    local = [sharded.local_tensor(p) for p in params]
    grads = [sharded.local_grad(p.grad, p) for p in params]
    states = [{key: sharded.local_tensor(x) for key, x in optimizer.state[p].items()} for p in params]
    # Before there is a reach, torch's fused AdamW takes the step. It unscales a GradScaler's gradients in place. Only
    # gradients in another layout than their parameter keep their scale, because it was given copies of them.
    is_adamw = group["fused"] and not group["reach_started"]
    unscales_grads = (
        is_adamw and not paths.any_narrow(local, grads, states, o) and paths.fused_adamw_takes(local, states)
    )
    found = [
        observe(p, g, state, without_scale if unscales_grads and in_layout_of(g, p) is g else o)
        for p, g, state in zip(local, grads, states, strict=True)
    ]
    for key, places in sharded.by_mesh(params).items():
        if key is not None:
            reduce_over_mesh(key[0], [params[i] for i in places], [found[i] for i in places])
    names = [options.name_of(group, number, i) for i in seen]
    return dict(zip(names, found, strict=True))


def reduce_over_mesh(mesh: Any, params: list[Tensor], found: list[dict[str, Tensor]]) -> None:
    """Turn observations of local parts into those of whole tensors, by two all-reduces. Quantiles stay local."""
    wires = {"sum": torch.stack([torch.stack(additive_terms(one)) for one in found])}
    copies = [sharded.replica_count(p, mesh) for p in params]
    wires["sum"] /= torch.tensor(copies, dtype=wires["sum"].dtype, device=wires["sum"].device)[:, None]
    local_maxima = [one["modulator_max"].nan_to_num(0.0) for one in found if "modulator_max" in one]
    wires |= {"max": torch.stack(local_maxima)} if local_maxima else {}
    sharded.all_reduce_(wires, mesh)
    maxima = iter(wires["max"].unbind() if local_maxima else ())
    for one, sums in zip(found, wires["sum"], strict=True):
        numel = sums[-1]
        for key, x in zip([key for key in (*NORMS, *MEANS, "bend_update", "numel") if key in one], sums, strict=True):
            one[key] = x.sqrt() if key in NORMS else x / numel if key in MEANS else x
        if "modulator_max" in one:
            one["modulator_max"] = next(maxima)


def additive_terms(one: dict[str, Tensor]) -> list[Tensor]:
    """The squares of norms, the sums of means, ``bend_update`` and ``numel``; zeros for a part without elements."""
    n = one["numel"]
    parts = [one[key].square() for key in NORMS if key in one] + [one[key] * n for key in MEANS if key in one]
    return [torch.where(n > 0, x, 0.0) for x in (*parts, one["bend_update"], n)]


def observe(param: Tensor, grad: Tensor, state: State, o: Options) -> dict[str, Tensor]:
    """The observation of one parameter after a step, as 0-dim tensors.

    Args:
        param: the parameter w.
        grad: its gradient, which is multiplied by ``o.grad_factor``.
        state: its state in the optimizer.
        o: the options of its group at that step.
    """
    state, dtype = real_state(state), storage.arithmetic(real(param).dtype)
    w, g = real(param.detach()).to(dtype), real(grad).to(dtype)
    g = g if not isinstance(o.grad_factor, Tensor) and o.grad_factor == 1 else g * o.grad_factor
    m, v = (storage.widened(state[key], dtype) for key in ("exp_avg", "exp_avg_sq"))
    step = state["step"].to(w.device, torch.float64)  # float32 has too few digits for 1 − β2^t
    h = (v.sqrt() / (1 - o.beta2**step).sqrt()).add_(o.eps).to(dtype)
    # m_t = β1 m_{t−1} + (1 − β1) g, and so (1 − β1)(g − m_{t−1}) = (1 − β1)/β1 (g − m_t)
    c, c_factor = g - m, (1 - o.beta1) / o.beta1 if o.beta1 else math.nan
    u = (m / h).div_((1 - o.beta1**step).to(dtype)).add_(w, alpha=o.weight_decay)
    found = {
        "grad_norm": g.norm(),
        "bend_norm": c_factor * c.norm(),
        "bend_update": -c_factor * o.lr * torch.dot(c.flatten(), u.flatten()),
        "param_norm": w.norm(),
        "update_norm": o.lr * u.norm(),
        "effective_step": o.lr * torch.reciprocal(h, out=u).mean(),  # in place: allocation costs more than arithmetic
        "numel": torch.full((), w.numel(), dtype=dtype, device=w.device),
    }
    if has_offset(state, o):
        reach = state["reach"].to(w.device, dtype)
        means = [state["reach_mean"]] if o.modulator.needs_mean else []
        (denom,) = o.modulator.offset_denominators([u.copy_(h)], means)
        found |= {"reach": reach, "offset_norm": reach * torch.div(m, denom, out=c).norm()}
        return found | of_modulator(h.div_(denom))
    return found


def of_modulator(s: Tensor) -> dict[str, Tensor]:
    """Statistics of S of one parameter; NaN if it has no elements."""
    flat = s.flatten()
    if not len(flat):
        nothing = s.new_full((), math.nan)
        return dict.fromkeys(("modulator_mean", "modulator_max", "capped", *QUANTILES), nothing)
    sample = flat[:: math.ceil(len(flat) / SAMPLED)].sort().values
    at = {key: sample[min(len(sample) - 1, int(q * len(sample)))] for key, q in QUANTILES.items()}
    capped = torch.count_nonzero(s >= CAP * (1 - 1e-6)).to(s.dtype) / s.numel()
    return {"modulator_mean": s.mean(), "modulator_max": s.max(), "capped": capped, **at}


def _to_floats(tensors: list[Tensor]) -> list[float]:
    """0-dim tensors as numbers, by one transfer from each device."""
    numbers: list[float] = [0.0] * len(tensors)
    for device in {x.device for x in tensors}:
        places = [i for i, x in enumerate(tensors) if x.device == device]
        values = torch.stack([tensors[i].double() for i in places]).tolist()
        for i, value in zip(places, values, strict=True):
            numbers[i] = value
    return numbers
