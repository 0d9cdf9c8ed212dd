"""The tensors of a wrapped optimizer's step that have a reach: parts of a group, and what a step does to them."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import reach, sharded
from .reach import Scalar
from .state import scalar
from .subsets import all_identical
from .update import State

SCALARS = ("reach", "rms_ratio", "path_length", "reach_steps")  # κ, ρ, N and the number of steps
ENTRIES = ("offset", *SCALARS)
"""What the reach adds to the state of a parameter: the offset κ u = z − w, and 0-dim scalars."""


@dataclass
class Part:
    """Parameters of a group on one device and mesh and in one dtype, with their state.

    Attributes:
        owners, states: the parameters, and their states.
        rows: the scalars, of shape (4, n), in the order of ``SCALARS``. Those in ``states`` are views of it.
        owner_offsets: the offsets.
        mesh: of DTensors, else None.
        params, offsets: the parameters and their offsets, or the local tensors of DTensors.
    """

    owners: list[Tensor]
    states: list[State]
    rows: Tensor
    owner_offsets: list[Tensor]
    mesh: Any

    def __post_init__(self) -> None:
        self.params = [sharded.local_tensor(p.detach()) for p in self.owners]
        self.offsets = list(map(sharded.local_tensor, self.owner_offsets))
        self._stored = False

    @property
    def narrow(self) -> bool:
        """Whether the parameters have less than 32 bits."""
        return self.params[0].dtype.itemsize < 4

    def is_current(self, states: Mapping[Tensor, State]) -> bool:
        """Whether the state dicts and the local tensors are still the same objects."""
        same = all_identical([states.get(p) for p in self.owners], self.states)
        return same and (self.mesh is None or all_identical(list(map(sharded.local_tensor, self.owners)), self.params))

    def count_step(self) -> None:
        """Count a step of the base, and add the entries of the reach to the states.

        This comes after the step, because a base initializes a state that is empty.
        """
        self.rows[SCALARS.index("reach_steps")] += 1
        if not self._stored:
            for state, offset, column in zip(self.states, self.owner_offsets, self.rows.unbind(1), strict=True):
                state.update(zip(ENTRIES, (offset, *column.unbind()), strict=True))
            self._stored = True

    def to_z(self) -> None:
        """Set the parameters to z, and store it in ``offsets`` until :meth:`to_w`."""
        torch._foreach_add_(self.offsets, self.params)
        torch._foreach_copy_(self.params, self.offsets)

    def to_w(self, lr: Scalar, peak: Scalar, factor: Scalar, travel: float, horizon: float) -> None:
        """Displace the next z to w = z − κ u, and measure ρ and N for the next step.

        ``factor`` is γ · lr_factor(lr).
        """
        torch._foreach_sub_(self.offsets, self.params)  # lr u
        _, ratios, lengths, steps = self.rows.unbind()
        kappas = factor * ratios * reach.travel_factor(lengths, travel)
        if horizon < math.inf:
            kappas = kappas.clamp(max=horizon * peak)
        z_norms, step_norms = self._norms()
        ratios = reach.next_rms_ratios(z_norms, over(step_norms, lr), ratios)
        lengths = reach.next_path_lengths(lengths, ratios, self.rows[1], lr, peak, steps)
        self.rows.copy_(torch.stack([kappas, ratios, lengths, steps]))
        torch._foreach_mul_(self.offsets, list(over(kappas, lr).unbind()))
        self._subtract_offsets()

    def _subtract_offsets(self) -> None:
        """w = z − κ u. In a narrow dtype the offset becomes the rounded z − w, so that undoing it gives z exactly."""
        if not self.narrow:
            torch._foreach_sub_(self.params, self.offsets)
            return
        zs = [p.clone() for p in self.params]
        torch._foreach_sub_(self.params, self.offsets)
        torch._foreach_copy_(self.offsets, zs)
        torch._foreach_sub_(self.offsets, self.params)

    def _norms(self) -> tuple[Tensor, Tensor]:
        """The norms of z and lr u, of whole tensors. Their ratio is that of the RMS."""
        dtype = torch.float32 if self.narrow else None
        norms = torch.stack([torch.stack(torch._foreach_norm(xs, 2, dtype)) for xs in (self.params, self.offsets)])
        if self.mesh is not None:
            copies = [sharded.replica_count(p, self.mesh) for p in self.owners]
            squares = norms.double() ** 2 / torch.tensor(copies, dtype=torch.float64, device=norms.device)
            sharded.all_reduce_({"sum": squares}, self.mesh)
            norms = squares.sqrt()
        z_norms, step_norms = norms.to(self.rows.dtype).unbind()
        return z_norms, step_norms

    def forget_offsets(self) -> None:
        """Make the present parameters z and w."""
        torch._foreach_zero_(self.offsets)


def over(x: Tensor, lr: Scalar) -> Tensor:
    """Return x / lr, or 0 at lr = 0."""
    if isinstance(lr, Tensor):
        return torch.where(lr > 0, x / lr, 0.0)
    return x / lr if lr > 0 else torch.zeros_like(x)


def gather(states: defaultdict[Tensor, State], params: Iterable[Tensor]) -> list[Part]:
    """The parts of parameters that may have a reach, with zeros where their states have no entries of the reach."""
    parts: dict[Any, list[Tensor]] = {}
    for p in params:
        mesh = p.device_mesh if sharded.is_sharded(p) else None  # type: ignore[attr-defined]
        parts.setdefault((p.device, p.dtype, mesh), []).append(p)
    return [_part(owners, [states[p] for p in owners], mesh) for (_, _, mesh), owners in parts.items()]


def _part(owners: list[Tensor], states: list[State], mesh: Any) -> Part:
    zero = scalar(0.0, sharded.local_tensor(owners[0]))
    rows = torch.stack([torch.stack([state.get(key, zero) for state in states]) for key in SCALARS])
    both = zip(owners, states, strict=True)
    offsets = [state["offset"] if "offset" in state else torch.zeros_like(p, requires_grad=False) for p, state in both]
    return Part(owners, states, rows, offsets, mesh)


def drop_lost_reaches(states: Mapping[Tensor, State], params: Iterable[Tensor], flags: Iterable[bool]) -> None:
    """Set parameters that may no longer have a reach to z, and delete the entries of the reach from their states."""
    for p, flag in zip(params, flags, strict=True):
        state = states.get(p, {})
        if not flag and "offset" in state:
            p.add_(state["offset"])
            for key in ENTRIES:
                state.pop(key, None)


def split(state_dict: Mapping[str, Any], params: Mapping[Any, Tensor]) -> tuple[dict[str, Any], dict[Tensor, State]]:
    """Divide a state dict into that of the base and the entries of the reach, by parameter, which are copied.

    ``params`` has the parameter of each number in the state dict.

    Raises:
        ValueError: an offset has another shape than its parameter.
    """
    bases, own = {}, {}
    for i, state in state_dict["state"].items():
        bases[i] = {key: x for key, x in state.items() if key not in ENTRIES}
        if "offset" in state and i in params:
            p, offset = params[i], state["offset"]
            if offset.shape != p.shape:
                raise ValueError(
                    f"'offset' of parameter {i} has shape {tuple(offset.shape)} in the checkpoint but must have the "
                    f"parameter's, {tuple(p.shape)}; load the checkpoint of the same model"
                )
            scalars = {key: state[key].detach().to(scalar(0.0, p), copy=True) for key in SCALARS}
            own[p] = {"offset": offset.detach().to(p.device, p.dtype, copy=True), **scalars}
    return {**state_dict, "state": bases}, own
