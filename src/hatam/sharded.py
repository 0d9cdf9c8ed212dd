"""Parameters of which each process holds a part: DTensors, as FSDP2, HSDP and tensor parallelism make them.

The element-wise work is done on the local parts, on whatever path takes them. What a step needs of a whole tensor, the
sizes of z and u and for the relative modulator the mean of h, are sums over all parts. They are not needed before the
next step. So one all-reduce for each device mesh and dtype is begun at the end of a step and awaited when the next one
begins: 4 bytes for each sum of a float32 tensor, and there are two or three of them.
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
from .fused.batches import select, state_rows
from .storage import arithmetic
from .subsets import Subset, all_identical
from .update import Options

FLATTENED = "_fsdp_flattened"  # set by FSDP1 on its flat parameters, and on what it made of the original ones
SUMS = "shard_sums"
_groups: dict[Any, Any] = {}


def is_sharded(x: Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    return hasattr(x, "_local_tensor")


def local_tensor(x: Tensor) -> Tensor:
    """This process' part, or all of a tensor that is not sharded; the same object at each call, for caches."""
    part: Tensor = getattr(x, "_local_tensor", x)
    return part


def local_grad(grad: Tensor, param: Tensor) -> Tensor:
    """This process' part of a gradient, sharded as its parameter is."""
    if not is_sharded(grad):
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
        if is_sharded(p) and any(at.is_partial() for at in p.placements):
            raise RuntimeError(
                f"a parameter is a DTensor with placements {p.placements}, a sum that is not made yet: redistribute it "
                "to Shard or Replicate"
            )
        if is_sharded(p) and group["state_dtype"] == "8bit":
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
        device = local_tensor(params[0]).device
        sums = torch.zeros(len(params), 3, dtype=torch.float64, device=device)
        counts = [[copies(p, mesh) for p in params], [p.numel() * (2 if p.is_complex() else 1) for p in params]]
        return Sums(sums, list(sums.unbind()), *torch.tensor(counts, dtype=torch.float64, device=device).unbind())


@dataclass
class Pending:
    """Sums of some parameters on one mesh, of this process and, once they have been sent and are awaited, of all."""

    key: Any  # mesh and dtype
    wire: Tensor  # (tensors, sums)
    states: list[dict[str, Tensor]]
    numel: Tensor  # of the whole tensors
    o: Options


class LocalSubset(NamedTuple):
    """Local tensors of a subset's parameters on one mesh, or of those that are not sharded."""

    wanted: list[int]
    key: Any  # mesh and dtype of the sums, None where nothing is sharded
    places: list[int]
    local: Subset
    states: list[dict[str, Tensor]]  # of the whole tensors
    sums: Sums | None

    @staticmethod
    def of(subset: Subset, key: Any, places: list[int], wanted: list[int]) -> LocalSubset:
        """Of some parameters of a subset."""
        whole = select(subset.params, places)
        state = {name: select(column, places) for name, column in subset.state.items()}
        columns = {name: list(map(local_tensor, column)) for name, column in state.items()}
        sums = Sums.of(whole, key[0]) if wanted and key is not None else None
        if sums is not None:
            columns[SUMS] = sums.each
        indices = select(subset.param_indices, places)
        local = Subset(subset.grad_places, list(map(local_tensor, whole)), columns, indices)
        return LocalSubset(wanted, key, places, local, state_rows(state), sums)

    def is_current(self, subset: Subset, wanted: list[int]) -> bool:
        """Whether the tensors have the same local parts as before."""
        known = [(subset.params, self.local.params)]
        known += [(column, self.local.state[key]) for key, column in subset.state.items()]
        return self.wanted == wanted and all(
            all_identical([local_tensor(x) for x in select(xs, self.places)], local) for xs, local in known
        )


class Shards:
    """The sums of an optimizer's sharded parameters."""

    def __init__(self) -> None:
        self.made: list[Pending] = []  # in this step
        self.sent: list[Pending] = []
        self.works: list[Any] = []  # all-reduces on their way

    def run(self, step: Callable[..., None], subset: Subset, grads: list[Tensor], o: Options, *args: Any) -> None:
        """One step of a subset of which some parameters are sharded, on one mesh or several.

        Args:
            step: called with local tensors as a subset, their gradients, and ``args``.
            subset, grads: the parameters, their state and gradients.
            o: options of the step.
            args: further arguments of ``step``.
        """
        wanted = wanted_sums(o) if subset.has_reach else []
        if subset.shards is None or not all(one.is_current(subset, wanted) for one in subset.shards):
            meshes = by_mesh(subset.params).items()
            subset.shards = [LocalSubset.of(subset, key, places, wanted) for key, places in meshes]
        for one in subset.shards:
            mine = [local_grad(grads[i], subset.params[i]) for i in one.places]
            step(one.local, mine, *args)
            if one.sums is not None:
                self.made.append(Pending(one.key, wire_of(one.key, one.sums, wanted), one.states, one.sums.numel, o))

    def send(self) -> None:
        """Begin the all-reduces of a step: one for each mesh and dtype, whatever the number of groups."""
        by_key: dict[Any, list[Pending]] = {}
        for one in self.made:
            by_key.setdefault(one.key, []).append(one)
        for (mesh, _), some in by_key.items():
            if mesh.size() > 1:
                flat = torch.cat([one.wire.flatten() for one in some])
                for one, part in zip(some, torch.split(flat, [one.wire.numel() for one in some]), strict=True):
                    one.wire = part.view_as(one.wire)
                self.works.append(dist.all_reduce(flat, group=group_of(mesh), async_op=True))
        self.sent, self.made = self.made, []

    def wait(self) -> None:
        """Wait for the sums of the last step, and keep what they say of the whole tensors.

        Those of a step that raised have not been sent, and are forgotten.
        """
        for work in self.works:
            work.wait()
        for one in self.sent:
            store_sums(one)
        self.made, self.sent, self.works = [], [], []


def by_mesh(params: list[Tensor]) -> dict[Any, list[int]]:
    """The places of parameters by device mesh and dtype of their sums; of those that are not sharded under None."""
    found: dict[Any, list[int]] = {}
    for i, p in enumerate(params):
        key = (p.device_mesh, arithmetic(p.dtype.to_real())) if is_sharded(p) else None  # type: ignore[attr-defined]
        found.setdefault(key, []).append(i)
    return found


def wanted_sums(o: Options) -> list[int]:
    """Which of Σz², Σu² and Σh a step needs of a whole tensor."""
    return [0, 1, 2] if o.modulator.needs_mean else [0, 1]


def wire_of(key: Any, sums: Sums, wanted: list[int]) -> Tensor:
    """What is to be summed over the processes. What several of them hold alike counts once."""
    wire = sums.all[:, wanted] / sums.copies[:, None]
    return wire.to(torch.float32 if key[1] == torch.float32 else torch.float64)


def copies(param: Any, mesh: Any) -> int:
    """How many processes hold the same part. What is strided, as FSDP2 over tensor parallel is, is sharded too."""
    return math.prod(n for n, at in zip(mesh.shape, param.placements, strict=True) if at.is_replicate())


def group_of(mesh: Any) -> Any:
    """The processes of a mesh, of several dimensions too: where these are all there are, no new group is made."""
    if mesh.ndim == 1:
        return mesh.get_group()
    if mesh.size() == dist.get_world_size():
        return dist.group.WORLD
    ranks = tuple(mesh.mesh.flatten().tolist())
    key = (dist.group.WORLD, ranks)  # another world after destroy_process_group()
    if key not in _groups:
        _groups[key] = dist.new_group(list(ranks), use_local_synchronization=True)
    return _groups[key]


def all_reduced(wires: dict[str, Tensor], mesh: Any) -> None:
    """Replace tensors by their sum, or their maximum, over the processes of a mesh."""
    operations = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}
    for name, wire in wires.items():
        if mesh.size() > 1:
            dist.all_reduce(wire, operations[name], group=group_of(mesh))


def payload(tensors: int, *, mean: bool = False, itemsize: int = 4) -> int:
    """Bytes that each process hands to the one all-reduce of a step, of a mesh.

    Args:
        tensors: that are sharded over the mesh and have a reach.
        mean: whether the modulator is relative.
        itemsize: 4 of float32 and narrower parameters, 8 of float64.

    Example:
        >>> payload(291), payload(291, mean=True)
        (2328, 3492)
    """
    return tensors * itemsize * (3 if mean else 2)


def store_sums(one: Pending) -> None:
    """What a step measures of whole tensors, by the rules of :mod:`hatam.update`."""
    z2, u2, *means = (x / one.numel for x in one.wire.to(torch.float64).unbind(1))
    dtype = local_tensor(one.states[0]["exp_avg_sq"]).dtype
    update.store_rms_(one.states, z2.sqrt(), u2.sqrt(), means[0] if means else None, dtype, one.o)


def any_sharded(params: Iterable[Tensor]) -> bool:
    """Whether any of them is a DTensor."""
    return any(map(is_sharded, params))
