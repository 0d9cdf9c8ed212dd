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
from .fused.batches import Columns, picked, rows
from .gathered import Part, same
from .storage import arithmetic
from .update import Options

FLATTENED = "_fsdp_flattened"  # set by FSDP1 on its flat parameters, and on what it made of the original ones
SUMS = "shard_sums"
_groups: dict[Any, Any] = {}


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
    """Sums of some parameters on one mesh, of this process and, once they have been sent and are awaited, of all."""

    key: Any  # mesh and dtype
    wire: Tensor  # (tensors, sums)
    states: list[dict[str, Tensor]]
    numel: Tensor  # of the whole tensors
    o: Options


class Cut(NamedTuple):
    """Local tensors of a part's parameters on one mesh, or of those that are not cut; cached while nothing changes."""

    part: Part
    wanted: list[int]
    key: Any  # mesh and dtype of the sums, None where nothing is cut
    places: list[int]
    params: list[Tensor]
    columns: Columns
    numbers: list[int]
    states: list[dict[str, Tensor]]
    sums: Sums | None

    @staticmethod
    def of(part: Part, key: Any, places: list[int], wanted: list[int]) -> Cut:
        """Look at some parameters of a part."""
        whole, numbers = picked(part.params, places), picked(part.numbers, places)
        state = {name: picked(column, places) for name, column in part.columns.items()}
        columns = {name: list(map(local, column)) for name, column in state.items()}
        sums = Sums.of(whole, key[0]) if wanted and key is not None else None
        if sums is not None:
            columns[SUMS] = sums.each
        return Cut(part, wanted, key, places, list(map(local, whole)), columns, numbers, rows(state), sums)

    def is_of(self, part: Part, wanted: list[int]) -> bool:
        """Whether this was made of that part, whose tensors have the same local parts as then."""
        if self.part is not part or self.wanted != wanted:
            return False
        pairs = [(part.params, self.params), *((xs, self.columns[key]) for key, xs in part.columns.items())]
        return all(same([local(x) for x in picked(xs, self.places)], known) for xs, known in pairs)


class Shards:
    """The sums of an optimizer's sharded parameters."""

    def __init__(self) -> None:
        self.made: list[Pending] = []  # in this step
        self.sent: list[Pending] = []
        self.works: list[Any] = []  # all-reduces on their way
        self._cut: dict[int, list[Cut]] = {}  # by the number of a part's first parameter

    def run(self, step: Callable[..., None], part: Part, grads: list[Tensor], o: Options | None) -> None:
        """One step of a part of a group.

        Args:
            step: does it for parameters, gradients, state and numbers that are not cut.
            part: some parameters may be cut, on several meshes.
            grads: theirs.
            o: of the step, None where it needs nothing of whole tensors.
        """
        wanted = [] if o is None else wanted_sums(o)
        cut = self._cut.get(part.numbers[0])
        if cut is None or not all(one.is_of(part, wanted) for one in cut):
            cut = self._cut[part.numbers[0]] = [Cut.of(part, *of, wanted) for of in by_mesh(part.params).items()]
        for one in cut:
            mine = [local_grad(grads[i], part.params[i]) for i in one.places]
            step(one.params, mine, one.columns, one.numbers)
            if one.sums is not None and o is not None:
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

    def settle(self) -> None:
        """Wait for the sums of the last step, and keep what they say of the whole tensors.

        Those of a step that raised have not been sent, and are forgotten.
        """
        for work in self.works:
            work.wait()
        for one in self.sent:
            keep(one)
        self.made, self.sent, self.works = [], [], []

    def forget(self) -> None:
        """Let the tensors of the last step go."""
        self._cut.clear()


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


def wire_of(key: Any, sums: Sums, wanted: list[int]) -> Tensor:
    """What is to be summed over the processes. What several of them hold alike counts once."""
    wire = sums.all[:, wanted] / sums.copies[:, None]
    return wire.to(torch.float32 if key[1] == torch.float32 else torch.float64)


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
