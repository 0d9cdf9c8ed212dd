"""What several processes check together: torchrun … distributed_cases.py OUT CASE…. See test_distributed.py."""

from __future__ import annotations

import copy
import itertools
import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from conftest import Falling
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel

from hatam import HATAM, follow, sharded

KINDS: dict[str, dict[str, Any]] = {
    "uniform": {},
    "relative": {"modulator": "relative"},
    "every tensor": {"hidden": True},
    "AdamW": {"gamma": 0.0},
}
PATHS: dict[str, dict[str, Any]] = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "single": {"foreach": False, "fused": False},
}
SHAPES = ((13, 6), (5,), (3, 4), (1, 7), (0, 3), (33, 8))  # uneven, with empty parts, and one without elements
LIMITS = {torch.float32: 1e-6, torch.float64: 1e-12}
STEPS = 12  # the processes wait for each other at every collective, and there may be more of them than cores


def cut(whole: Tensor, mesh: DeviceMesh, placements: Any) -> DTensor:
    """A tensor that every process has, sharded without a message."""
    return distribute_tensor(whole, mesh, placements, src_data_rank=None)


def world() -> DeviceMesh:
    return init_device_mesh("cpu", (dist.get_world_size(),))


def full(x: Tensor) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def error(parts: list[Tensor], wholes: list[Tensor]) -> float:
    """The largest difference over the tensor, by its largest entry."""
    found = [0.0]
    for part, whole in zip(parts, wholes, strict=True):
        p, q = full(part.detach()).double(), whole.detach().double()
        if q.numel():
            found.append(float((p - q).abs().max() / q.abs().max()))
    return max(found)


# Prescribed gradients on DTensors -------------------------------------------------------------------------------------


def placed(mesh: DeviceMesh, kind: str, i: int) -> list[Any]:
    """The placements of parameter i."""
    if mesh.ndim == 2:
        return [Replicate(), Shard(0)] if kind == "hsdp" or i % 2 else [Shard(0), Shard(min(1, len(SHAPES[i]) - 1))]
    if kind == "mixed":
        return [[Shard(0)], [Replicate()], [Shard(len(SHAPES[i]) - 1)]][i % 3]
    return [Shard(0)]


def one_group(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    return [{"params": params}]


def many_groups(params: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Of several kinds, with a frozen weight among them."""
    first, second, third, *rest, last = params
    last.requires_grad_(False)
    still, relative = {"params": [second], "gamma": 0.0}, {"params": [third], "modulator": "relative"}
    return [{"params": [first, last]}, still, relative, {"params": rest, "weight_decay": 0.0}]


def same_as_whole(
    mesh: DeviceMesh, kind: str, options: dict[str, Any], dtype: torch.dtype, groups: Any = one_group
) -> float:
    """Steps of sharded parameters against whole ones, lr rising and falling, with a reach as soon as it falls."""
    rng = torch.Generator().manual_seed(0)
    wholes = [nn.Parameter(torch.randn(shape, generator=rng, dtype=dtype)) for shape in SHAPES]
    parts = [nn.Parameter(cut(p.detach().clone(), mesh, placed(mesh, kind, i))) for i, p in enumerate(wholes)]
    optimizers = [HATAM(groups(ps), 0.01, travel=0.0, horizon=8.0, **options) for ps in (wholes, parts)]
    for step in range(STEPS):
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = 0.01 * min(1.0, (step + 1) / 3, (STEPS - step) / 8)
        for p, q in ((p, q) for p, q in zip(wholes, parts, strict=True) if p.requires_grad):
            p.grad = torch.randn(p.shape, generator=rng, dtype=dtype)
            q.grad = cut(p.grad.clone(), mesh, q.placements)
        for optimizer in optimizers:
            optimizer.step()
    reaches = [float(state["reach"]) for state in optimizers[1].state.values() if "reach" in state]
    assert max(reaches, default=0.0) > 0 or options.get("gamma") == 0
    worst = error(parts, wholes)
    with optimizers[0].straightened(), optimizers[1].straightened():
        return max(worst, error(parts, wholes))


def case_parity() -> dict[str, float]:
    """Every kind on every path, in both precisions."""
    meshes = {"shard": world(), "mixed": world()}
    if dist.get_world_size() == 4:
        two = init_device_mesh("cpu", (2, 2), mesh_dim_names=("outer", "inner"))
        meshes = {"mixed": world(), "hsdp": two, "2d": two}
    errors = {}
    for (layout, mesh), (kind, options), (path, flags), dtype in itertools.product(
        meshes.items(), KINDS.items(), PATHS.items(), LIMITS
    ):
        few = kind in ("relative", "every tensor")
        if (few and path == "fused") if dist.get_world_size() == 4 else (kind == "relative" or layout == "shard"):
            found = same_as_whole(mesh, layout, {**options, **flags}, dtype)
            errors[f"{layout}, {kind}, {path}, {dtype}"] = found
            assert found <= LIMITS[dtype], (layout, kind, path, dtype, found)
    for path, dtype in itertools.product(PATHS, LIMITS):
        found = same_as_whole(meshes["mixed"], "mixed", PATHS[path], dtype, many_groups)
        errors[f"mixed, groups, {path}, {dtype}"] = found
        assert found <= LIMITS[dtype], (path, dtype, found)
    return errors


class Counted:
    """How often, and with how many bytes, the optimizer asks for an all-reduce."""

    def __enter__(self) -> list[int]:
        self.bytes: list[int] = []
        self.real = dist.all_reduce

        def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.bytes.append(tensor.nbytes)
            return self.real(tensor, *args, **kwargs)

        sharded.dist.all_reduce = counted
        return self.bytes

    def __exit__(self, *_: object) -> None:
        sharded.dist.all_reduce = self.real


def case_collectives() -> dict[str, Any]:
    """One for each mesh and step, whatever the number of tensors; none that AdamW would not have until lr falls."""
    one = world()
    counts: dict[str, Any] = {}
    for (kind, options), made in itertools.product(KINDS.items(), (HATAM, Falling)):
        params = [nn.Parameter(cut(torch.randn(8, 3), one, [Shard(0)])) for _ in range(20)]
        optimizer = made([{"params": params[:8]}, {"params": params[8:]}], **options)
        with Counted() as found:
            for _ in range(3):
                for p in params:
                    p.grad = cut(torch.randn(8, 3), one, [Shard(0)])
                optimizer.step()
        sums = {"relative": 3, "AdamW": 0}.get(kind, 2) if made is Falling else 0
        assert found == [4 * sums * 20] * (3 if sums else 0), (kind, found)
        counts[kind] = {"collectives a step": len(found) / 3, "bytes a tensor": sum(found) / 60}
    if dist.get_world_size() == 4:
        outer = init_device_mesh("cpu", (2, 2), mesh_dim_names=("a", "b"))
        meshes = [one, outer["a"], outer["b"]]
        params = [nn.Parameter(cut(torch.randn(8, 3), meshes[i % 3], [Shard(0)])) for i in range(9)]
        optimizer = Falling(params)
        with Counted() as found:
            for p in params:
                p.grad = cut(torch.randn(8, 3), p.device_mesh, [Shard(0)])
            optimizer.step()
        assert found == [2 * 4 * 3] * 3, found
        counts["three meshes"] = len(found)
    return counts


# Modules --------------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """Sizes that no number of processes divides."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(10, 36), nn.LayerNorm(36), nn.Linear(36, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.norm(self.up(x))))


def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(), nn.Linear(7, 10), Block()).to(dtype)


def batch(step: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(step)
    return torch.randn(24, 10, generator=rng, dtype=dtype), torch.randn(24, 7, generator=rng, dtype=dtype)


def own(x: Tensor, ranks: int, rank: int) -> Tensor:
    return x.chunk(ranks)[rank]


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, first: int, last: int, ranks: int = 1, rank: int = 0
) -> None:
    """On this process' share of each batch, or on all of it."""
    dtype = next(model.parameters()).dtype
    for step in range(first, last):
        x, y = (own(part, ranks, rank) for part in batch(step, dtype))
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()
    if isinstance(optimizer, HATAM):
        optimizer.state_dict()  # so that no sum is still on its way when process groups and models go


def sharded_fully(model: nn.Sequential, mesh: DeviceMesh) -> nn.Module:
    for layer in model:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def case_modules() -> dict[str, float]:
    """FSDP2, HSDP, tensor parallel and both together, trained beside the whole network on the same batches."""
    size, rank = dist.get_world_size(), dist.get_rank()
    plan = {"0.up": ColwiseParallel(output_layouts=Replicate()), "2.down": RowwiseParallel(input_layouts=Replicate())}
    plan |= {"1": ColwiseParallel(output_layouts=Replicate())}
    errors = {}

    def tensor_parallel(mesh: DeviceMesh) -> Callable[[nn.Sequential], nn.Module]:
        return lambda model: parallelize_module(model, mesh, plan)

    kinds: dict[str, tuple[Callable[[nn.Sequential], nn.Module], int, int]] = {
        "FSDP2": (lambda model: sharded_fully(model, world()), size, rank),
        "TP": (tensor_parallel(world()), 1, 0),
    }
    if size == 4:
        two = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
        kinds["HSDP"] = (lambda model: sharded_fully(model, two), size, rank)
        kinds["FSDP2 and TP"] = (
            lambda m: sharded_fully(tensor_parallel(two["tp"])(m), two["dp"]),
            2,
            two.get_local_rank("dp"),
        )
    for (kind, (parallel, ranks, mine)), dtype, form in itertools.product(
        kinds.items(), LIMITS, ("uniform", "relative")
    ):
        if size == 4 and (dtype == torch.float32 or (form == "uniform" and kind in ("FSDP2", "TP"))):
            continue  # two processes show these
        if dtype == torch.float32 and form == "relative":
            continue
        whole, part = network(dtype), parallel(network(dtype))
        optimizers = [Falling(m.parameters(), 3e-3, **KINDS[form]) for m in (whole, part)]
        train(whole, optimizers[0], 0, STEPS)
        train(part, optimizers[1], 0, STEPS, ranks, mine)
        found = error(list(part.parameters()), list(whole.parameters()))
        errors[f"{kind}, {form}, {dtype}"] = found
        assert found <= 20 * LIMITS[dtype], (
            kind,
            form,
            dtype,
            found,
        )  # the gradients, too, are summed in another order
    return errors


def case_ddp() -> dict[str, float]:
    """A static graph, with an optimizer made before the processes had the same weights; accumulation without
    synchronization; and a process whose loss is NaN harms all alike."""
    size, rank = dist.get_world_size(), dist.get_rank()
    whole, model = network(), network()
    other = copy.deepcopy(model)
    with torch.no_grad():
        torch._foreach_mul_(list(other.parameters()), 1.0 + rank)
    optimizers = [Falling(m.parameters(), 3e-3) for m in (whole, other)]
    parallel = DistributedDataParallel(other, static_graph=True)
    train(whole, optimizers[0], 0, 20)
    train(parallel, optimizers[1], 0, 20, size, rank)
    errors = {"static graph": error(list(parallel.parameters()), list(whole.parameters()))}

    whole, parallel = network(), DistributedDataParallel(model)
    optimizers = [Falling(m.parameters(), 3e-3) for m in (whole, parallel)]
    train(whole, optimizers[0], 0, 20)
    for step in range(20):
        x, y = (own(part, size, rank).chunk(3) for part in batch(step, torch.float64))
        optimizers[1].zero_grad()
        with parallel.no_sync():
            for i in (0, 1):
                (nn.functional.mse_loss(parallel(x[i]), y[i]) / 3).backward()
        (nn.functional.mse_loss(parallel(x[2]), y[2]) / 3).backward()
        optimizers[1].step()
    errors["accumulation"] = error(list(parallel.parameters()), list(whole.parameters()))
    assert max(errors.values()) < 1e-11, errors

    optimizers[1].zero_grad()
    loss = nn.functional.mse_loss(parallel(x[0]), y[0]) * (float("nan") if rank == 0 else 1.0)
    loss.backward()
    optimizers[1].step()
    for p in parallel.parameters():
        everyones = [torch.empty_like(p) for _ in range(size)]
        dist.all_gather(everyones, p.detach())
        assert all(torch.equal(p.isnan(), q.isnan()) for q in everyones)
    return errors


def case_follow() -> dict[str, float]:
    """``eval()`` of a followed model takes the weights to z, whatever shards or wraps it."""
    size, rank = dist.get_world_size(), dist.get_rank()
    whole = network()
    reference = Falling(whole.parameters(), 3e-3)
    train(whole, reference, 0, 10)
    errors = {}
    for kind in ("FSDP2", "DDP"):
        model = network()
        inner = sharded_fully(model, world()) if kind == "FSDP2" else model
        outer = inner if kind == "FSDP2" else DistributedDataParallel(model)
        optimizer = Falling(inner.parameters(), 3e-3)
        follow(inner, optimizer)
        train(outer, optimizer, 0, 10, size, rank)
        w = [full(p.detach()).clone() for p in inner.parameters()]
        outer.eval()
        outer(batch(0, torch.float64)[0])
        with reference.straightened():
            errors[kind] = error(list(inner.parameters()), list(whole.parameters()))
        assert errors[kind] < 1e-11, errors
        assert error(list(inner.parameters()), w) > 1e-6
        outer.train()
        assert error(list(inner.parameters()), w) < 1e-12
    return errors


def case_scaler() -> dict[str, float]:
    """A GradScaler of sharded parameters: what overflows on one process is skipped on all, whoever undoes the scale."""
    size, rank = dist.get_world_size(), dist.get_rank()
    errors = {}
    for path, flags in PATHS.items():
        whole, part = network(), sharded_fully(network(), world())
        optimizers = [Falling(m.parameters(), 3e-3, **flags) for m in (whole, part)]
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        for step in range(10):
            x, y = batch(step, torch.float64)
            optimizers[0].zero_grad()
            nn.functional.mse_loss(whole(x), y).backward()
            if step != 4:
                optimizers[0].step()
            optimizers[1].zero_grad()
            scaler.scale(nn.functional.mse_loss(part(own(x, size, rank)), own(y, size, rank))).backward()
            if step == 4 and rank == 0:
                sharded.local_tensor(next(iter(part.parameters())).grad)[0] = float("inf")
            scaler.step(optimizers[1])
            scaler.update()
        optimizers[1].state_dict()
        errors[path] = error(list(part.parameters()), list(whole.parameters()))
        assert scaler.get_scale() == 512.0
    assert max(errors.values()) < 1e-12, errors
    return errors


def case_merged() -> dict[str, str]:
    """FSDP1 is refused but as AdamW; ZeroRedundancyOptimizer deals tensors out whole."""
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.optim import ZeroRedundancyOptimizer

    size, rank = dist.get_world_size(), dist.get_rank()
    said = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for original in (False, True):
            model = FullyShardedDataParallel(network(), use_orig_params=original, device_id=torch.device("cpu"))
            try:
                HATAM(model.parameters())
            except RuntimeError as refused:
                said[f"use_orig_params={original}"] = str(refused)
            whole = network()
            optimizers = [HATAM(m.parameters(), 3e-3, gamma=0.0) for m in (whole, model)]
            train(whole, optimizers[0], 0, 10)
            train(model, optimizers[1], 0, 10, size, rank)
            with FullyShardedDataParallel.summon_full_params(model):
                assert error(list(model.parameters()), list(whole.parameters())) < 1e-10 or not original
    assert all("use torch.distributed.fsdp.fully_shard (FSDP2)" in words for words in said.values())
    assert len(said) == 2
    whole, parallel = network(), DistributedDataParallel(network())
    options = {"lr": 3e-3, "modulator": "relative"}
    train(whole, Falling(whole.parameters(), **options), 0, 20)
    train(parallel, ZeroRedundancyOptimizer(parallel.parameters(), Falling, **options), 0, 20, size, rank)
    assert error(list(parallel.parameters()), list(whole.parameters())) < 1e-11
    return said


def case_telemetry() -> dict[str, float]:
    """What is seen of sharded parameters is what is seen of whole ones, also where a process has no part of one."""
    from hatam.telemetry import Telemetry

    mesh, reports = world(), []
    for is_sharded in (False, True):
        rng = torch.Generator().manual_seed(0)
        params = [nn.Parameter(torch.randn(shape, generator=rng, dtype=torch.float64)) for shape in SHAPES]
        if is_sharded:
            places = [placed(mesh, "mixed", i) for i in range(len(params))]
            params = [nn.Parameter(cut(p.detach(), mesh, at)) for p, at in zip(params, places, strict=True)]
        optimizer = Falling(params, 0.01, modulator="relative", hidden=True)
        telemetry = Telemetry(optimizer, every=5)
        for _ in range(5):
            for p in params:
                g = torch.randn(p.shape, generator=rng, dtype=torch.float64)
                p.grad = cut(g, mesh, p.placements) if is_sharded else g
            optimizer.step()
        reports.append(telemetry.read())
    whole, part = reports
    compared = {}
    for one, other in zip(
        [*whole["groups"], *whole["params"].values()], [*part["groups"], *part["params"].values()], strict=True
    ):
        for key in one.keys() - {"modulator_q05", "modulator_q50", "modulator_q95"}:
            assert abs(one[key] - other[key]) <= 1e-9 * abs(one[key]), (key, one[key], other[key])
            compared[key] = other[key]
    return compared


CASES = {name.removeprefix("case_"): case for name, case in list(globals().items()) if name.startswith("case_")}


def main() -> None:
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        for name in sys.argv[2:]:
            found = CASES[name]()
            dist.barrier()
            if dist.get_rank() == 0:
                (out / f"{name}-{os.environ['WORLD_SIZE']}.json").write_text(json.dumps(found), encoding="utf-8")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
