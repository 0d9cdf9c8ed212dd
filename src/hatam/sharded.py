"""Parameters of which each process holds a part: DTensors, as FSDP2, HSDP and tensor parallelism make them.

The element-wise work is done on the local parts, on whatever path takes them. What a step needs of a whole tensor, the
sizes of z and u and for the relative modulator the mean of h, are sums over all parts. They are not needed before the
next step. So one all-reduce for all tensors of a device mesh is begun at the end of a step and awaited at the beginning
of the next: 4 bytes for each sum of a float32 tensor, and there are two or three of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from . import update
from .fused.batches import Columns, picked, rows
from .storage import arithmetic
from .update import Options

FLATTENED = "_fsdp_flattened"  # set by FSDP1 on its flat parameters, and on what it made of the original ones
SUMS = "shard_sums"
_groups: dict[tuple[int, ...], Any] = {}


def is_cut(x: Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    return hasattr(x, "_local_tensor")


def local(x: Tensor) -> Tensor:
    """This process' part, or all of a tensor that is not cut: the same object at each call, as the kernels ask for."""
    part: Tensor = getattr(x, "_local_tensor", x)
    return part


def local_grad(grad: Tensor, param: Tensor) -> Tensor:
    """This process' part of a gradient, cut as its parameter is."""
    if not is_cut(grad):
        return grad
    placed: Any = grad
    if placed.placements != param.placements:  # type: ignore[attr-defined]
        placed = placed.redistribute(placements=param.placements)  # type: ignore[attr-defined]
    part: Tensor = placed.to_local()
    return part


def check(group: dict[str, Any]) -> None:
    """Refuse parameters whose tensors are not known any more, where a size of each tensor is needed.

    Raises:
        RuntimeError: FSDP1 has made flat parameters of them, or 8-bit state is wanted for a DTensor.
    """
    for p in group["params"]:
        if getattr(p, FLATTENED, False) and group["gamma"] != 0:
            raise RuntimeError(
                "FullyShardedDataParallel (FSDP1) has merged and cut the parameters, so that no tensor can be "
                "measured: use torch.distributed.fsdp.fully_shard (FSDP2), or gamma=0, which is AdamW"
            )
        if is_cut(p) and any(at.is_partial() for at in p.placements):
            raise RuntimeError(
                f"a parameter is a DTensor with placements {p.placements}, a sum that is not made yet: redistribute it "
                "to Shard or Replicate"
            )
        if is_cut(p) and group["state_dtype"] == "8bit":
            raise RuntimeError("state_dtype='8bit' is not supported for DTensors; use torch.bfloat16 or None")


class Sums(NamedTuple):
    """Of some parameters of one mesh: where their sums are written, and what they need to be added up."""

    all: Tensor  # (tensors, 3)
    each: list[Tensor]  # its rows
    copies: Tensor  # how many processes hold the same part
    numel: Tensor  # of the whole tensors

    @staticmethod
    def of(params: list[Tensor], mesh: Any) -> Sums:
        """With room for what is to be written."""
        device = local(params[0]).device
        sums = torch.zeros(len(params), 3, dtype=torch.float64, device=device)
        counts = [[copies(p, mesh) for p in params], [p.numel() * (2 if p.is_complex() else 1) for p in params]]
        return Sums(sums, list(sums.unbind()), *torch.tensor(counts, dtype=torch.float64, device=device).unbind())


@dataclass
class Pending:
    """Sums on their way."""

    work: Any  # of the all-reduce, None where there is one process
    wire: Tensor  # (tensors, sums) of all processes once the work is done
    states: list[dict[str, Tensor]]
    numel: Tensor  # of the whole tensors
    o: Options


class Shards:
    """The sums of an optimizer's sharded parameters."""

    def __init__(self) -> None:
        self.pending: list[Pending] = []
        self._sums: dict[int, tuple[list[int], Sums]] = {}

    def run(
        self,
        step: Callable[[list[Tensor], list[Tensor], Columns, list[int]], None],
        params: list[Tensor],
        grads: list[Tensor],
        state: Columns,
        numbers: list[int],
        o: Options | None,
    ) -> None:
        """One step of a group.

        Args:
            step: does it for parameters, gradients, state and numbers that are not cut.
            params, grads, state, numbers: of the group; some may be cut, on several meshes.
            o: of the step, None where it needs nothing of whole tensors.
        """
        for key, places in by_mesh(params).items():
            mine, theirs, whose = picked(params, places), picked(grads, places), picked(numbers, places)
            some = {name: picked(column, places) for name, column in state.items()}
            parts = [local(p) for p in mine]
            columns = {name: [local(x) for x in column] for name, column in some.items()}
            wanted = [] if o is None or key is None else wanted_sums(o)
            if wanted:
                sums = self._sums_of(whose, mine, key[0])
                columns[SUMS] = sums.each
            step(parts, [local_grad(g, p) for g, p in zip(theirs, mine, strict=True)], columns, whose)
            if wanted and o is not None:
                self.pending.append(begin(key, sums, wanted, rows(some), o))

    def _sums_of(self, numbers: list[int], params: list[Tensor], mesh: Any) -> Sums:
        """The same objects as long as the parameters are, by which a kernel knows that its tables still hold."""
        whose, sums = self._sums.get(numbers[0], ([], None))
        if sums is None or whose != numbers:
            sums = Sums.of(params, mesh)
            self._sums[numbers[0]] = numbers, sums
        return sums

    def settle(self) -> None:
        """Wait for the sums of the last step, and keep what they say of the whole tensors."""
        for one in self.pending:
            if one.work is not None:
                one.work.wait()
            keep(one)
        self.pending.clear()


def by_mesh(params: list[Tensor]) -> dict[Any, list[int]]:
    """The places of parameters by device mesh and dtype of their sums; of those that are not cut under None."""
    found: dict[Any, list[int]] = {}
    for i, p in enumerate(params):
        key = (p.device_mesh, arithmetic(p.dtype.to_real())) if is_cut(p) else None  # type: ignore[attr-defined]
        found.setdefault(key, []).append(i)
    return found


def wanted_sums(o: Options) -> list[int]:
    """Which of Σz², Σu² and Σh a step needs of a whole tensor."""
    return [0, 1, 2] if o.modulator.needs_mean else [0, 1]


def begin(key: Any, sums: Sums, wanted: list[int], states: list[dict[str, Tensor]], o: Options) -> Pending:
    """Start the all-reduce. What several processes hold alike counts once."""
    mesh, dtype = key
    wire = sums.all[:, wanted] / sums.copies[:, None]
    wire = wire.to(torch.float32 if dtype == torch.float32 else torch.float64)
    work = dist.all_reduce(wire, group=group_of(mesh), async_op=True) if mesh.size() > 1 else None
    return Pending(work, wire, states, sums.numel, o)


def copies(param: Any, mesh: Any) -> int:
    """How many processes hold the same part. What is strided, as FSDP2 over tensor parallel is, is cut too."""
    return math.prod(n for n, at in zip(mesh.shape, param.placements, strict=True) if at.is_replicate())


def group_of(mesh: Any) -> Any:
    """The processes of a mesh, of several dimensions too: where these are all there are, no new group is made."""
    if mesh.ndim == 1:
        return mesh.get_group()
    if mesh.size() == dist.get_world_size():
        return dist.group.WORLD
    ranks = tuple(mesh.mesh.flatten().tolist())
    if ranks not in _groups:
        _groups[ranks] = dist.new_group(list(ranks), use_local_synchronization=True)
    return _groups[ranks]


def all_reduced(wires: dict[str, Tensor], mesh: Any) -> None:
    """Replace tensors by their sum, or their maximum, over the processes of a mesh."""
    operations = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}
    for name, wire in wires.items():
        if mesh.size() > 1:
            dist.all_reduce(wire, operations[name], group=group_of(mesh))


def payload(tensors: int, *, mean: bool = False, itemsize: int = 4) -> int:
    """Bytes that each process hands to the one all-reduce of a step, of a mesh.

    Args:
        tensors: that are cut over the mesh and have a reach.
        mean: whether the modulator is relative.
        itemsize: 4 of float32 and narrower parameters, 8 of float64.

    Example:
        >>> payload(291), payload(291, mean=True)
        (2328, 3492)
    """
    return tensors * itemsize * (3 if mean else 2)


def keep(one: Pending) -> None:
    """What a step measures of whole tensors, by the rules of :mod:`hatam.update`."""
    z2, u2, *means = (x / one.numel for x in one.wire.to(torch.float64).unbind(1))
    dtype = local(one.states[0]["exp_avg_sq"]).dtype
    update.keep_(one.states, z2.sqrt(), u2.sqrt(), means[0] if means else None, dtype, one.o)


def any_cut(params: Iterable[Tensor]) -> bool:
    """Whether any of them is a DTensor."""
    return any(map(is_cut, params))
