"""Telemetry by a hook after the step; an optimizer without it does no extra work.

Every so many steps a hook after the step looks at gradients and state. What it finds stays on the device until it is
read. ``docs/telemetry.md`` says what healthy and unhealthy look like.
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
from .reports import MEANS, NORMS, Report, finished, flat, of_group, to_json_lines, to_tensorboard
from .state import has_offset, real, real_state
from .update import Options, State

__all__ = ["Report", "Telemetry", "flat", "observe", "to_json_lines", "to_tensorboard"]

SAMPLED = 1024
"""Coordinates of a tensor, evenly spread over it, of which the quantiles of S are taken."""
QUANTILES = {"modulator_q05": 0.05, "modulator_q50": 0.5, "modulator_q95": 0.95}


class Telemetry:
    """Observes a HATAM optimizer every so many steps.

    Of each parameter, and of each group as if it were one tensor:

    - ``grad_norm``, ``bend_norm``, ``bend_ratio``: ‖g‖, ‖c‖ and ‖c‖ / ‖g‖, with c = (1 − β1)(g − m) the bend.
    - ``modulator_mean``, ``…_max``, ``…_q05``, ``…_q50``, ``…_q95``, ``capped``: of S, and the share of coordinates at
      its cap; the quantiles are those of at most 1,024 coordinates, and of parameters alone.
    - ``reach`` (of parameters alone), ``offset_norm``, ``offset_ratio``: κ, ‖κ u‖, ‖κ u‖ / ‖w‖.
    - ``param_norm``: ‖w‖.
    - ``bend_update_cosine``: of c with the last update.
    - ``update_norm``, ``update_ratio``: ‖lr (m̂ / h + wd w)‖, and over ‖w‖.
    - ``effective_step``: the mean of lr / h, what a coordinate's averaged gradient is multiplied with.

    A parameter without a reach has neither offset nor modulator. Where β1 = 0, c cannot be told from the state after a
    step, and what depends on it is NaN.

    Args:
        optimizer: to be observed, on any path; not inside of torch.compile.
        every: steps from one observation to the next, >= 1. One costs as much as 6 to 25 steps.
        write: called with the report of each observation as it is made, which waits for the device.

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
                f"optimizer must be a HATAM, not {type(optimizer).__name__}; unwrap it where a host wrapped it"
            )
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise ValueError(f"every={every!r} must be an integer of at least 1")
        self.optimizer, self.every, self.write = optimizer, every, write
        counts = (int(state["step"].item()) for state in optimizer.state.values() if "step" in state)
        self.steps = max(counts, default=0)
        self._found: tuple[int, list[dict[str, dict[str, Tensor]]]] | None = None
        self._hook = optimizer.register_step_post_hook(self._after_step)

    def detach(self) -> None:
        """Stop observing; what was observed can still be read."""
        self._hook.remove()

    def read(self) -> Report | None:
        """The last observation as numbers, None before the first. Waits for the device.

        Returns:
            ``{"step": …, "groups": [{key: number}, …], "params": {name: {key: number}}}``. ``step`` goes on from
            that of the optimizer when observing began. A name that several groups have is followed by the number of the
            group.
        """
        if self._found is None:
            return None
        step, groups = self._found
        tensors = [x for params in groups for found in params.values() for x in found.values()]
        numbers = iter(_numbers(tensors))
        params = [{name: {key: next(numbers) for key in found} for name, found in of.items()} for of in groups]
        made = [of_group(list(of.values())) for of in params]
        often = Counter(name for of in params for name in of)
        named = {
            name if often[name] == 1 else f"{name} of group {i}": finished(found)
            for i, of in enumerate(params)
            for name, found in of.items()
        }
        return {"step": step, "groups": [finished(group) for group in made], "params": named}

    @torch.no_grad()
    def losses(self, loss: Callable[[], Any]) -> dict[str, float]:
        """The loss where the parameters are, and at the straightened point.

        Args:
            loss: of the model at its present parameters, on data of your choice.
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
    """What there is to see of each parameter of a group that has a gradient, by its name."""
    group = optimizer.param_groups[number]
    o = options.resolve(group, group["lr_peak"], getattr(optimizer, "grad_scale", None))
    without_scale = options.resolve(group, group["lr_peak"])
    stepped = [p.grad is not None and p.numel() and "step" in optimizer.state.get(p, {}) for p in group["params"]]
    seen = [i for i, known in enumerate(stepped) if known]
    params = [group["params"][i] for i in seen]
    local = [sharded.local_tensor(p) for p in params]
    grads = [sharded.local_grad(p.grad, p) for p in params]
    states = [{key: sharded.local_tensor(x) for key, x in optimizer.state[p].items()} for p in params]
    # torch's fused AdamW, which does the step until there is a reach, takes a GradScaler's scale off the gradients
    # themselves, unless they lay in memory otherwise than their parameters and it was given copies.
    is_adamw = group["fused"] and not group["reach_started"]
    is_torchs = is_adamw and not paths.any_narrow(local, grads, states, o) and paths.walks_memory(local, states)
    found = [
        observe(p, g, state, without_scale if is_torchs and in_layout_of(g, p) is g else o)
        for p, g, state in zip(local, grads, states, strict=True)
    ]
    for key, places in sharded.by_mesh(params).items():
        if key is not None:
            of_whole(key[0], [params[i] for i in places], [found[i] for i in places])
    names = [options.name_of(group, number, i) for i in seen]
    return dict(zip(names, found, strict=True))


def of_whole(mesh: Any, params: list[Tensor], found: list[dict[str, Tensor]]) -> None:
    """What was seen of parts of tensors, made of the whole by two messages; the quantiles stay those of this part."""
    wires = {"sum": torch.stack([torch.stack(additive(one)) for one in found])}
    copies = [sharded.copies(p, mesh) for p in params]
    wires["sum"] /= torch.tensor(copies, dtype=wires["sum"].dtype, device=wires["sum"].device)[:, None]
    most = [one["modulator_max"].nan_to_num(0.0) for one in found if "modulator_max" in one]
    wires |= {"max": torch.stack(most)} if most else {}
    sharded.all_reduced(wires, mesh)
    maxima = iter(wires["max"].unbind() if most else ())
    for one, sums in zip(found, wires["sum"], strict=True):
        numel = sums[-1]
        for key, x in zip([key for key in (*NORMS, *MEANS, "bend_update", "numel") if key in one], sums, strict=True):
            one[key] = x.sqrt() if key in NORMS else x / numel if key in MEANS else x
        if "modulator_max" in one:
            one["modulator_max"] = next(maxima)


def additive(one: dict[str, Tensor]) -> list[Tensor]:
    """Squares of norms, sums of means, and what is a sum, the number of elements last; 0 of a part that has none."""
    n = one["numel"]
    parts = [one[key].square() for key in NORMS if key in one] + [one[key] * n for key in MEANS if key in one]
    return [torch.where(n > 0, x, 0.0) for x in (*parts, one["bend_update"], n)]


def observe(param: Tensor, grad: Tensor, state: State, o: Options) -> dict[str, Tensor]:
    """What can be told of one parameter after a step, as 0-dim tensors.

    Args:
        param: w, with its gradient and its state after the step.
        grad: as ``backward()`` left it.
        state: of the optimizer.
        o: the options of the group at that step.
    """
    state, dtype = real_state(state), storage.arithmetic(real(param).dtype)
    w, g = real(param.detach()).to(dtype), real(grad).to(dtype)
    g = g if not isinstance(o.grad_factor, Tensor) and o.grad_factor == 1 else g * o.grad_factor
    m, v = (storage.widened(state[key], dtype) for key in ("exp_avg", "exp_avg_sq"))
    step = state["step"].to(w.device, torch.float64)  # 1 − β2^t needs the digits
    h = (v.sqrt() / (1 - o.beta2**step).sqrt()).add_(o.eps).to(dtype)
    # m_t = β1 m_{t−1} + (1 − β1) g, and so (1 − β1)(g − m_{t−1}) = (1 − β1)/β1 (g − m_t)
    c, of_c = g - m, (1 - o.beta1) / o.beta1 if o.beta1 else math.nan
    u = (m / h).div_((1 - o.beta1**step).to(dtype)).add_(w, alpha=o.weight_decay)
    found = {
        "grad_norm": g.norm(),
        "bend_norm": of_c * c.norm(),
        "bend_update": -of_c * o.lr * torch.dot(c.flatten(), u.flatten()),
        "param_norm": w.norm(),
        "update_norm": o.lr * u.norm(),
        "effective_step": o.lr * torch.reciprocal(h, out=u).mean(),  # new memory costs more than arithmetic
        "numel": torch.full((), w.numel(), dtype=dtype, device=w.device),
    }
    if has_offset(state, o):
        reach = state["reach"].to(w.device, dtype)
        spread = o.modulator.reach_denominators([u.copy_(h)], [state["reach_mean"]] if o.modulator.needs_mean else [])[
            0
        ]
        found |= {"reach": reach, "offset_norm": reach * torch.div(m, spread, out=c).norm()}
        return found | of_modulator(h.div_(spread))
    return found


def of_modulator(s: Tensor) -> dict[str, Tensor]:
    """S of one parameter."""
    flat = s.flatten()
    if not len(flat):
        nothing = s.new_full((), math.nan)
        return dict.fromkeys(("modulator_mean", "modulator_max", "capped", *QUANTILES), nothing)
    sample = flat[:: math.ceil(len(flat) / SAMPLED)].sort().values
    at = {key: sample[min(len(sample) - 1, int(q * len(sample)))] for key, q in QUANTILES.items()}
    capped = torch.count_nonzero(s >= CAP * (1 - 1e-6)).to(s.dtype) / s.numel()
    return {"modulator_mean": s.mean(), "modulator_max": s.max(), "capped": capped, **at}


def _numbers(tensors: list[Tensor]) -> list[float]:
    """0-dim tensors as numbers: one transfer from each device."""
    numbers: list[float] = [0.0] * len(tensors)
    for device in {x.device for x in tensors}:
        places = [i for i, x in enumerate(tensors) if x.device == device]
        values = torch.stack([tensors[i].double() for i in places]).tolist()
        for i, value in zip(places, values, strict=True):
            numbers[i] = value
    return numbers
