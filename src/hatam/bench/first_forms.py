"""The forms of HATAM that the first study compared, as it ran them: what its records and the theory's checks need.

"decoupled"
    AdamW on z; the gradient is taken at w = z − ρ S e / h, at a radius ρ that outlives lr until that is below ``fade``
    of its peak.
"raw"
    The gradient is corrected, ĝ = g + γ S c, and v is built from g.
"published"
    :class:`hatam.PublishedHATAM`, with v built from ĝ and no cap.

The radius is γ in units of the peak lr ("lr"), of each tensor's weights ("relative"), or as the Euclidean norm of the
whole displacement where training starts ("absolute").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from hatam.arguments import check_choice, check_number

State = dict[str, Any]
CAPS = {"decoupled": 1.0, "raw": 3.0, "published": math.inf}
RADII = ("absolute", "relative", "lr")
NO_GRADIENT_YET = 1 + 1e-6  # times ε: the mean of h = ε
LEAST_SPAN = 0.25  # of the RMS of e / h in pure noise
FADE = 0.1


class FirstHATAM(Optimizer):
    """One of these forms, tensor by tensor.

    Args:
        params: parameters or parameter groups.
        lr, betas, eps, weight_decay: as in AdamW.
        gamma: strength, >= 0.
        beta_c: rate of e; None means β1 (decoupled) or 0.9.
        modulator: "relative" for S = min(h / mean(h), cap), or "uniform" for S = 1.
        modulator_cap: None means 1 (decoupled), 3 (raw) or no cap (published).
        form: "decoupled", "raw" or "published".
        radius: "absolute", "relative" or "lr".
        radius_cap: of "absolute", as a share of the peak lr times the steps so far; None means no cap.
        fade: None means 0.1.
        foreach: without effect; records have it.

    Raises:
        TypeError, ValueError: an argument is wrong.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        gamma: float = 1.0,
        beta_c: float | None = None,
        modulator: str = "relative",
        modulator_cap: float | None = None,
        form: str = "decoupled",
        radius: str = "absolute",
        radius_cap: float | None = None,
        fade: float | None = None,
        foreach: bool | None = None,
    ) -> None:
        check_choice("form", form, CAPS)
        check_choice("radius", radius, dict.fromkeys(RADII))
        check_choice("modulator", modulator, {"relative": 1, "uniform": 1})
        check_number("gamma", gamma, 0.0, math.inf, open_end=True, remedy="0 is AdamW")
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "gamma": gamma,
            "beta_c": beta_c if beta_c is not None else betas[0] if form == "decoupled" else 0.9,
            "uniform": modulator == "uniform",
            "cap": CAPS[form] if modulator_cap is None else modulator_cap,
            "form": form,
            "radius": radius,
            "radius_cap": math.inf if radius_cap is None else radius_cap,
            "fade": FADE if fade is None else fade,
            "lr_peak": 0.0,
        }
        super().__init__(params, defaults)
        self.start: tuple[float, int] | None = None  # ‖w_0‖ and how many numbers w_0 has

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Perform one optimization step."""
        if closure is not None:
            raise TypeError("closure is not supported; call backward() before step()")
        every = [p for group in self.param_groups for p in group["params"]]
        if self.start is None:
            self.start = (
                math.sqrt(sum(float(p.double().square().sum()) for p in every)),
                sum(map(Tensor.numel, every)),
            )
        for group in self.param_groups:
            group["lr_peak"] = max(group["lr_peak"], group["lr"])
            for p in group["params"]:
                if p.grad is not None:
                    if not self.state[p]:
                        self.state[p].update(_start(p))
                    move = decoupled_ if group["form"] == "decoupled" else corrected_
                    move(p, p.grad, self.state[p], group, self.start)
        return None

    @contextmanager
    def straightened(self) -> Iterator[None]:
        """Inside, the parameters are z; afterwards they are what they were."""
        saved = [(p, p.detach().clone()) for group in self.param_groups for p in group["params"]]
        try:
            with torch.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        if self.state[p] and group["form"] == "decoupled":
                            undo_(p, self.state[p], group)
            yield
        finally:
            with torch.no_grad():
                for p, before in saved:
                    p.copy_(before)


def _start(p: Tensor) -> State:
    buffers = {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq", "exp_avg_grad")}
    scalars = {"radius": 0.0, "scale": 0.0, "mean": math.inf, "displacement_mean": math.inf}
    return {"step": torch.zeros(()), **buffers, **scalars}


def denominator(state: State, o: State) -> Tensor:
    """h = sqrt(v̂) + ε."""
    h: Tensor = (state["exp_avg_sq"] / (1 - o["betas"][1] ** max(1, int(state["step"])))).sqrt_().add_(o["eps"])
    return h


def spread(h: Tensor, mean: float, o: State) -> Tensor:
    """h / S."""
    return h if o["uniform"] else (h / o["cap"]).clamp_(min=mean)


def undo_(p: Tensor, state: State, o: State) -> None:
    """z = w + ρ S e / h."""
    if state["radius"]:
        p.addcdiv_(
            state["exp_avg_grad"], spread(denominator(state, o), state["displacement_mean"], o), value=state["radius"]
        )


def descend_(p: Tensor, state: State, o: State) -> Tensor:
    """AdamW's step; returns h."""
    h = denominator(state, o)
    p.mul_(1 - o["lr"] * o["weight_decay"])
    p.addcdiv_(state["exp_avg"], h, value=-o["lr"] / (1 - o["betas"][0] ** int(state["step"])))
    return h


def decoupled_(p: Tensor, g: Tensor, state: State, o: State, start: tuple[float, int]) -> None:
    """AdamW on z = w + d with the gradient taken at w; then w is displaced from z again."""
    (beta1, beta2), beta_c = o["betas"], o["beta_c"]
    undo_(p, state, o)
    state["step"] += 1
    state["exp_avg_grad"].lerp_(g, 1 - beta_c)
    state["exp_avg"].lerp_(g, 1 - beta1)
    state["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
    h = descend_(p, state, o)
    state["radius"] = radius(state, o, start)
    state["displacement_mean"] = state["mean"] if state["mean"] > NO_GRADIENT_YET * o["eps"] else math.inf
    state["mean"] = float(h.mean())
    over = spread(h, state["displacement_mean"], o)
    if o["radius"] != "lr":
        u, z = (float(x.square().mean()) for x in (state["exp_avg_grad"] / over, p))
        state["scale"] = next_scale(z, u, state["scale"], o)
    p.addcdiv_(state["exp_avg_grad"], over, value=-state["radius"])


def radius(state: State, o: State, start: tuple[float, int]) -> float:
    """ρ of this step."""
    gamma, peak, t = o["gamma"], o["lr_peak"], int(state["step"])
    if o["radius"] == "lr":
        return float(gamma * min(peak, o["lr"] / o["fade"]))
    held = min(1.0, o["lr"] / (o["fade"] * peak)) if peak else 0.0
    if o["radius"] == "relative":
        return float(gamma * held * state["scale"])
    norm, numel = start
    furthest = o["radius_cap"] * peak * t * math.sqrt(numel) / norm if norm else math.inf
    share = min(gamma / norm, 0.25, furthest) if norm else 0.25
    return float(share * held * math.sqrt(1 - o["betas"][1] ** t) * state["scale"])


def next_scale(z2: float, u2: float, last: float, o: State) -> float:
    """RMS(z) / RMS(S e / h): 0 before any gradient, the last for a NaN; of a norm it grows by 0.3% a step at most."""
    if u2 == 0:
        return 0.0
    least = LEAST_SPAN**2 * (1 - o["beta_c"]) / (1 + o["beta_c"])
    new = math.sqrt(z2 / max(u2, least)) if math.isfinite(u2) and math.isfinite(z2) else math.nan
    if not math.isfinite(new):
        return last
    return min(new, 1.003 * last) if o["radius"] == "absolute" and last > 0 else new


def corrected_(p: Tensor, g: Tensor, state: State, o: State, start: tuple[float, int]) -> None:
    """AdamW on ĝ; "raw" builds v from g instead."""
    (beta1, beta2), e = o["betas"], state["exp_avg_grad"]
    h = denominator(state, o)
    s = torch.ones_like(h) if o["uniform"] else (h / (h.mean() + o["eps"])).clamp_(max=o["cap"])
    corrected = g + o["gamma"] * (1 - o["beta_c"]) * s * (g - e)
    e.lerp_(g, 1 - o["beta_c"])
    state["step"] += 1
    of_v = g if o["form"] == "raw" else corrected
    state["exp_avg"].lerp_(corrected, 1 - beta1)
    state["exp_avg_sq"].mul_(beta2).addcmul_(of_v, of_v, value=1 - beta2)
    descend_(p, state, o)
