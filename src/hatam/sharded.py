"""Sharded parameters: DTensors, as FSDP2, HSDP and tensor parallelism make them.

Each process updates its local parts, on any code path. A step also needs sums over whole tensors: Σz² and Σu² for ρ,
and Σh for the relative modulator. They are needed only in the next step. So a step ends by starting one all-reduce for
each device mesh and dtype, and the next step waits for it. Each tensor has two or three sums, of 4 bytes for float32.
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

FLATTENED = "_fsdp_flattened"  # set by FSDP1 on its flat parameters, and on their views
SUMS = "shard_sums"
_groups: dict[Any, Any] = {}  # process groups of the present "world", by ranks


def is_sharded(x: Tensor) -> bool:
    """Whether a tensor is a DTensor."""
    return hasattr(x, "_local_tensor")


def local_tensor(x: Tensor) -> Tensor:
    """The local tensor of a DTensor, or the tensor itself. Every call returns the same object, which caches rely on."""
    part: Tensor = getattr(x, "_local_tensor", x)
    return part


def local_grad(grad: Tensor, param: Tensor) -> Tensor:
    """The local tensor of a gradient, with the placements of its parameter."""
    if not is_sharded(grad):
        return grad
    placed: Any = grad
    if placed.placements != param.placements:  # type: ignore[attr-defined]
        placed = placed.redistribute(placements=param.placements)  # type: ignore[attr-defined]
    part: Tensor = placed.to_local()
    return part


def check_supported(group: dict[str, Any]) -> None:
    """Refuse sharded parameters that are not supported.

    Raises:
        RuntimeError: parameters of FSDP1 with γ > 0, a partial placement, or 8-bit state of a DTensor.
    """
    for p in group["params"]:
        if getattr(p, FLATTENED, False) and group["gamma"] != 0:
            raise RuntimeError(
                "FullyShardedDataParallel (FSDP1) has flattened the parameters, and HATAM cannot measure the original "
                "tensors: use torch.distributed.fsdp.fully_shard (FSDP2), or gamma=0, which is AdamW"
            )
        if is_sharded(p) and any(at.is_partial() for at in p.placements):
            raise RuntimeError(
                f"a parameter is a DTensor with a partial placement, {p.placements}, which is not supported: "
                "redistribute it to Shard or Replicate"
            )
        if is_sharded(p) and group["state_dtype"] == "8bit":
            raise RuntimeError("state_dtype='8bit' is not supported for DTensors; use torch.bfloat16 or None")


class Sums(NamedTuple):
    """Buffers for the local sums of parameters on one mesh, and the counts needed to add them over processes."""

    rows: Tensor  # (tensors, 3): Σz², Σu², Σh
    row_views: list[Tensor]  # views of ``rows``
    copies: Tensor  # numbers of processes that hold the same part
    numel: Tensor  # of the whole tensors

    @staticmethod
    def of(params: list[Tensor], mesh: Any) -> Sums:
        """Buffers for these parameters, filled with zeros."""
        device = local_tensor(params[0]).device
        sums = torch.zeros(len(params), 3, dtype=torch.float64, device=device)
        counts = [[replica_count(p, mesh) for p in params], [p.numel() * (2 if p.is_complex() else 1) for p in params]]
        return Sums(sums, list(sums.unbind()), *torch.tensor(counts, dtype=torch.float64, device=device).unbind())


@dataclass
class Pending:
    """Sums for parameters on one mesh: those of this process, and after the all-reduce those of all processes."""

    key: Any  # mesh and dtype
    sums: Tensor  # (tensors, sums)
    states: list[dict[str, Tensor]]
    numel: Tensor  # of the whole tensors
    o: Options


class MeshSubset(NamedTuple):
    """The local tensors of those parameters of a subset that share a mesh, or are not sharded."""

    wanted: list[int]  # of :func:`wanted_sums`
    key: Any  # mesh and dtype of the sums; None for parameters that are not sharded
    places: list[int]  # in the subset
    local: Subset
    states: list[dict[str, Tensor]]  # of the whole tensors
    sums: Sums | None

    @staticmethod
    def of(subset: Subset, key: Any, places: list[int], wanted: list[int]) -> MeshSubset:
        """The local tensors of the parameters at these places of a subset."""
        params = select(subset.params, places)
        state = {name: select(column, places) for name, column in subset.columns.items()}
        columns = {name: list(map(local_tensor, column)) for name, column in state.items()}
        sums = Sums.of(params, key[0]) if wanted and key is not None else None
        if sums is not None:
            columns[SUMS] = sums.row_views
        indices = select(subset.param_indices, places)
        local = Subset(subset.grad_places, list(map(local_tensor, params)), columns, indices)
        return MeshSubset(wanted, key, places, local, state_rows(state), sums)

    def is_current(self, subset: Subset, wanted: list[int]) -> bool:
        """Whether the tensors have the same local parts as before."""
        known = [(subset.params, self.local.params)]
        known += [(column, self.local.columns[key]) for key, column in subset.columns.items()]
        return self.wanted == wanted and all(
            all_identical([local_tensor(x) for x in select(xs, self.places)], local) for xs, local in known
        )


class Shards:
    """Steps of an optimizer's sharded parameters, with the all-reduces of their sums."""

    def __init__(self) -> None:
        self.unsent: list[Pending] = []  # in this step
        self.in_flight: list[Pending] = []
        self.works: list[Any] = []  # all-reduces in progress

    def run(
        self,
        step: Callable[[Subset, list[Tensor], dict[str, Any], Options], None],
        subset: Subset,
        grads: list[Tensor],
        group: dict[str, Any],
        o: Options,
    ) -> None:
        """Take one step of a subset in which parameters are sharded, on one mesh or several.

        Args:
            step: called with the subset of local tensors of each mesh, and their gradients.
            subset, grads: the parameters with their state, and their gradients.
            group, o: the group, and its options for the step.
        """
        wanted = wanted_sums(o) if subset.has_reach else []
        if subset.local_subsets is None or not all(one.is_current(subset, wanted) for one in subset.local_subsets):
            meshes = by_mesh(subset.params).items()
            subset.local_subsets = [MeshSubset.of(subset, key, places, wanted) for key, places in meshes]
        for one in subset.local_subsets:
            mine = [local_grad(grads[i], subset.params[i]) for i in one.places]
            step(one.local, mine, group, o)
            if one.sums is not None:
                self.unsent.append(Pending(one.key, sums_of(one.key, one.sums, wanted), one.states, one.sums.numel, o))

    def send(self) -> None:
        """Start the all-reduces of a step: one for each mesh and dtype, for all groups together."""
        by_key: dict[Any, list[Pending]] = {}
        for one in self.unsent:
            by_key.setdefault(one.key, []).append(one)
        for (mesh, _), some in by_key.items():
            if mesh.size() > 1:
                flat = torch.cat([one.sums.flatten() for one in some])
                for one, part in zip(some, torch.split(flat, [one.sums.numel() for one in some]), strict=True):
                    one.sums = part.view_as(one.sums)
                self.works.append(dist.all_reduce(flat, group=group_of(mesh), async_op=True))
        self.in_flight, self.unsent = self.unsent, []

    def wait(self) -> None:
        """Wait for the all-reduces of the last step, and store ρ, N and mean(h) of whole tensors.

        A step that raised an exception sent no sums. They are dropped.
        """
        for work in self.works:
            work.wait()
        for one in self.in_flight:
            store_sums(one)
        self.unsent, self.in_flight, self.works = [], [], []


def by_mesh(params: list[Tensor]) -> dict[Any, list[int]]:
    """The places of parameters by device mesh and dtype of their sums, or by None if they are not sharded."""
    found: dict[Any, list[int]] = {}
    for i, p in enumerate(params):
        key = (p.device_mesh, arithmetic(p.dtype.to_real())) if is_sharded(p) else None  # type: ignore[attr-defined]
        found.setdefault(key, []).append(i)
    return found


def wanted_sums(o: Options) -> list[int]:
    """The indices of those of Σz², Σu² and Σh that a step needs of whole tensors."""
    return [0, 1, 2] if o.modulator.needs_mean else [0, 1]


def sums_of(key: Any, sums: Sums, wanted: list[int]) -> Tensor:
    """The sums to add over processes, divided by their numbers of copies: a replicated part counts once."""
    found = sums.rows[:, wanted] / sums.copies[:, None]
    return found.to(torch.float32 if key[1] == torch.float32 else torch.float64)


def replica_count(param: Any, mesh: Any) -> int:
    """The number of processes that hold the same part. Only Replicate counts: strided sharding is sharding too."""
    return math.prod(n for n, at in zip(mesh.shape, param.placements, strict=True) if at.is_replicate())


def group_of(mesh: Any) -> Any:
    """The process group of a whole mesh. A new one is made only for a mesh of several dimensions in a larger world."""
    if mesh.ndim == 1:
        return mesh.get_group()
    if mesh.size() == dist.get_world_size():
        return dist.group.WORLD
    ranks = tuple(mesh.mesh.flatten().tolist())
    if _groups.get("world") is not dist.group.WORLD:  # groups end with destroy_process_group()
        _groups.clear()
        _groups["world"] = dist.group.WORLD
    if ranks not in _groups:
        _groups[ranks] = dist.new_group(list(ranks), use_local_synchronization=True)
    return _groups[ranks]


def all_reduce_(tensors: dict[str, Tensor], mesh: Any) -> None:
    """All-reduce tensors in place over the processes of a mesh. The key, "sum" or "max", is the operation."""
    operations = {"sum": dist.ReduceOp.SUM, "max": dist.ReduceOp.MAX}
    for name, tensor in tensors.items():
        if mesh.size() > 1:
            dist.all_reduce(tensor, operations[name], group=group_of(mesh))


def payload(tensors: int, *, mean: bool = False, itemsize: int = 4) -> int:
    """The bytes that each process sends in one all-reduce.

    Args:
        tensors: number of tensors that are sharded over the mesh and have a reach.
        mean: whether the modulator is relative.
        itemsize: 4 for float32 and narrower parameters, 8 for float64.

    Example:
        >>> payload(291), payload(291, mean=True)
        (2328, 3492)
    """
    return tensors * itemsize * (3 if mean else 2)


def store_sums(one: Pending) -> None:
    """Store ρ, N and mean(h) of whole tensors from their sums."""
    z2, u2, *h_sums = one.sums.to(torch.float64).unbind(1)
    means = h_sums[0] / one.numel if h_sums else None
    dtype = local_tensor(one.states[0]["exp_avg_sq"]).dtype
    update.store_norms_(one.states, z2.sqrt(), u2.sqrt(), means, dtype, one.o)


def any_sharded(params: Iterable[Tensor]) -> bool:
    """Whether any tensor is a DTensor."""
    return any(map(is_sharded, params))
