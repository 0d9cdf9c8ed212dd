"""Writes the tensors of a batch into a table on their device, and launches the GPU kernels that read it.

m and v have the same bits as those of :mod:`hatam.fused.cpu`. Bias corrections may differ by rounding. A step has three
launches for any number of tensors, never makes the CPU wait, and gives the same bits in every run. Table and scratch
need 14 integers, 14 constants and two keys for each tensor, and at most 28 bytes for each 2048 elements.

The table holds addresses, and stays on the device while they are unchanged. When they change, as after ``zero_grad()``
has freed gradients, the table is copied again asynchronously.

A step in a CUDA graph (``capturable=True``, lr as a tensor) needs at least one eager step before the capture, as every
graph does: the eager step compiles the kernels and reserves memory. Gradients must stay at their captured addresses.
The tables of a graph are kept until the process ends, because the end of a graph cannot be observed.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable
from contextlib import nullcontext
from functools import cache, lru_cache
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..modulators import CAP, RELATIVE, UNIFORM
from ..reach import GROWTH, Scalar
from ..storage import MOMENTS, REACH_STATE
from ..update import EPS_MARGIN, Options
from .batches import Batch, dtypes_match

CHUNK = 2048  # elements per program: 8 for each of 256 threads
WARPS = 8
LANES = 128  # tensors per program of `prepare`
MAX_TABLES = 256  # limit of cached tables, and of spare memory for captures; the oldest are dropped
ADDRESSES = ("param", "grad", *MOMENTS, "step", *REACH_STATE, "shard_sums")  # the order of gpu_words.py

COMBINATIONS = {
    (torch.float32, torch.float32, torch.float32),
    (torch.float32, torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    (torch.bfloat16, torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16, torch.float32),
    (torch.float64, torch.float64, torch.float64),
}
"""The supported dtypes of parameter and gradient, of m, and of v."""
DTYPES = {param for param, _, _ in COMBINATIONS} | {torch.complex64, torch.complex128}  # complex as real pairs


@cache
def load() -> ModuleType | str:
    """The module of the kernels, or the reason why there is none."""
    try:
        from . import gpu_kernels
    except ImportError as error:
        return f"it needs Triton, which does not load ({error}); pip install triton"
    return gpu_kernels


@cache
def unavailable_reason() -> str | None:
    """The reason why there is no kernel, or None if there is one. On a GPU, a trivial kernel is compiled as a test."""
    kernels = load()
    if isinstance(kernels, str):
        return kernels
    if torch.cuda.is_available():
        try:
            kernels.nothing[(1,)](0)
        except Exception as error:  # of any type: Triton also needs a supported GPU, a C compiler and Python's headers
            reason = str(error).strip().splitlines() or [type(error).__name__]
            return f"Triton cannot compile for this GPU ({reason[0]}); it needs a C compiler and a GPU that it supports"
    return None


def kernels() -> Any:
    """The module of the kernels. Raises RuntimeError if there is none."""
    loaded = load()
    if isinstance(loaded, str):
        raise RuntimeError(f"there is no fused GPU kernel: {loaded}")
    return loaded


def supports(dtypes: dict[str, torch.dtype], o: Options) -> bool:
    """Whether the kernels support these options and dtypes, which are by state key, "param" and "grad"."""
    return (
        dtypes_match(dtypes)
        and o.modulator in (UNIFORM, RELATIVE)
        and (dtypes["param"], dtypes["exp_avg"], dtypes["exp_avg_sq"]) in COMBINATIONS
    )


def step(batch: Batch, o: Options) -> None:
    """Take one step with a batch that :func:`supports` accepts, as :func:`hatam.fused.cpu.step` does."""
    if batch.kernel_cache is None:
        batch.kernel_cache = Layout.of(batch, o)
    device = batch.params[0].device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        launch(tables(table_key(batch), batch.kernel_cache.scratch, device), batch.kernel_cache, o)
    torch.autograd.graph.increment_version(batch.params)


class Layout(NamedTuple):
    """The table's columns and the kernels' compile-time arguments; only the gradients' addresses may change."""

    columns: list[array[int]]
    scratch: Scratch
    scalars: dict[str, Any]  # types of the 0-dim state tensors
    loop: dict[str, Any]  # of ``update``

    @staticmethod
    def of(batch: Batch, o: Options) -> Layout:
        """The layout of a batch."""
        absent, dtypes = array("Q", bytes(8 * len(batch.params))), batch.dtypes
        columns = [batch.addresses.get(key, absent) for key in (*ADDRESSES, "numel")]
        scratch = Scratch(
            len(batch.params), dtypes["param"] == torch.float64, "reach" in dtypes, "denom_mean" in dtypes
        )
        scalars = {
            "STEP_TYPE": triton_type(dtypes["step"]),
            "SCALAR_TYPE": triton_type(dtypes.get("reach", torch.float32)),
        }
        return Layout([*columns, array("Q", batch.param_indices)], scratch, scalars, update_constants(dtypes, o))


class Scratch(NamedTuple):
    """Which scratch memory the kernels need to pass results to each other."""

    tensors: int
    double: bool
    reaches: bool
    means: bool  # of h

    def on(self, device: torch.device, chunks: int) -> list[Tensor | None]:
        """Constants and keys for each tensor; for each chunk sums of z^2, (S m / h)^2 and sqrt(v), or None."""
        precision = torch.float64 if self.double else torch.float32
        constants = torch.empty(self.tensors, kernels().words.CONSTANTS.value, dtype=precision, device=device)
        keys = torch.empty(self.tensors, 2, dtype=torch.int32, device=device)  # of this step and of the one before
        wanted = (self.reaches, self.reaches, self.means)
        sums = [torch.empty(chunks, dtype=torch.float64, device=device) if want else None for want in wanted]
        return [constants, keys, *sums]


# Tables -------------------------------------------------------------------------------------------------------------


class Tables(NamedTuple):
    """A batch's tensors and chunks, as tables on the device."""

    rows: Tensor  # int64, (tensors, columns of gpu_words.py)
    chunks: Tensor  # int32, the index of each chunk's tensor
    scratch: list[Tensor | None]
    aligned: bool  # whether the addresses of param, grad, m and v are multiples of 16 bytes
    source: Tensor  # the rows in CPU memory; kept because a graph copies them at every replay


def table_key(batch: Batch) -> bytes:
    """The table's columns as bytes, which are the key of cached tables."""
    batch.kernel_cache.columns[ADDRESSES.index("grad")] = batch.addresses["grad"]
    return b"".join(batch.kernel_cache.columns)


def tables(key: bytes, scratch: Scratch, device: torch.device) -> Tables:
    """The tables for a table key; an earlier step's, if it had the same key on the same stream."""
    if device.type != "cuda":
        return cached(key, scratch, device, 0)
    if torch.cuda.is_current_stream_capturing():
        return graph_tables(key, scratch, device)
    reserve_pinned(key, scratch.tensors, device)
    return cached(key, scratch, device, torch.cuda.current_stream(device).cuda_stream)


@lru_cache(maxsize=MAX_TABLES)
def cached(key: bytes, scratch: Scratch, device: torch.device, stream: int) -> Tables:
    """Tables for use on one stream only, so that the allocator can reuse their memory once they are dropped."""
    return build(key, empty_rows(scratch.tensors, device), scratch, device)


_spares: dict[bytes, Tensor] = {}  # pinned memory for tables of captures, which cannot allocate any
_in_graphs: list[Tables] = []  # kept for the graphs that read them


def param_addresses_of(key: bytes, tensors: int) -> bytes:
    """The part of a table key with the parameters' addresses, which stay the same when those of gradients change."""
    return key[: 8 * tensors]


def reserve_pinned(key: bytes, tensors: int, device: torch.device) -> None:
    """Reserve pinned memory, so that a step of these parameters can be captured."""
    key = param_addresses_of(key, tensors)
    if key not in _spares:
        _spares[key] = empty_rows(tensors, device)
    if len(_spares) > MAX_TABLES:
        del _spares[next(iter(_spares))]


def graph_tables(key: bytes, scratch: Scratch, device: torch.device) -> Tables:
    """New tables for a CUDA graph, which copies them to the device at every replay."""
    spare = _spares.pop(param_addresses_of(key, scratch.tensors), None)
    if spare is None:
        raise RuntimeError(
            f"step() was captured in a CUDA graph with {scratch.tensors} tensors on one code path, but they had "
            "no eager step since the last capture; take one before the capture, as torch's notes on CUDA graphs show"
        )
    _in_graphs.append(build(key, spare, scratch, device))
    return _in_graphs[-1]


def empty_rows(tensors: int, device: torch.device) -> Tensor:
    """CPU memory for the rows of a table, pinned so that the copy to a GPU is asynchronous."""
    return torch.empty(tensors, len(ADDRESSES) + 3, dtype=torch.int64, pin_memory=device.type == "cuda")


def build(key: bytes, source: Tensor, scratch: Scratch, device: torch.device) -> Tables:
    """Fill in the rows, cut the tensors into chunks, and copy both to the device."""
    columns = torch.frombuffer(bytearray(key), dtype=torch.int64).view(len(ADDRESSES) + 2, -1)
    numel = columns[len(ADDRESSES)]
    chunks = (numel + CHUNK - 1) // CHUNK
    source[:, :-1] = columns.T
    source[:, -1] = chunks.cumsum(0) - chunks  # index of the first one
    rows = source.to(device, non_blocking=True)
    counts = (rows[:, len(ADDRESSES)] + CHUNK - 1) // CHUNK
    chunk_map = torch.repeat_interleave(counts, output_size=int(chunks.sum())).to(torch.int32)
    walked = columns[: 2 + len(MOMENTS)]
    return Tables(rows, chunk_map, scratch.on(device, len(chunk_map)), not bool((walked % 16).any()), source)


# Launches -----------------------------------------------------------------------------------------------------------


def launch(table: Tables, layout: Layout, o: Options) -> None:
    """Launch the three kernels of a step."""
    k, device = kernels(), table.rows.device
    constants, keys, *sums = table.scratch
    tensors, chunks, reaches = layout.scratch.tensors, len(table.chunks), layout.scratch.reaches
    found_inf = None if o.found_inf is None else o.found_inf.to(device, non_blocking=True)
    shared = {"log_beta2": log(o.beta2), "eps": float(o.eps), "no_gradient_yet": EPS_MARGIN * o.eps}

    k.prepare[(-(-tensors // LANES),)](
        table.rows, constants, keys, tensors, o.seed, found_inf, **options(o, device), **shared, **layout.scalars,
        REACHES=reaches, UNIFORM=not layout.scratch.means, LANES=LANES, enable_fp_fusion=False,
    )  # fmt: skip
    if chunks:
        k.update[(chunks,)](
            table.rows, table.chunks, constants, keys, *sums, found_inf, **layout.loop,
            ALIGNED=table.aligned, CHUNK=CHUNK, num_warps=WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    if reaches:
        k.finish[(tensors,)](
            table.rows, *sums, found_inf, **option_values(("reach_factor", "lr", "lr_peak"), o, device), **shared,
            **layout.scalars, growth=GROWTH, CHUNK=CHUNK, WIDTH=1024, enable_fp_fusion=False,
        )  # fmt: skip


def triton_type(dtype: torch.dtype) -> Any:
    """The type with which the kernels read a dtype; bfloat16 is read as its bits."""
    tl = kernels().tl
    return {torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.uint16}[dtype]


def update_constants(dtypes: dict[str, torch.dtype], o: Options) -> dict[str, Any]:
    """The dtypes and flags for which ``update`` is compiled."""
    narrow = {key for key, dtype in dtypes.items() if dtype == torch.bfloat16}
    return {
        "P": triton_type(dtypes["param"]),
        "M": triton_type(dtypes["exp_avg"]),
        "V": triton_type(dtypes["exp_avg_sq"]),
        "UNIFORM": "denom_mean" not in dtypes,
        "ROUND_PARAM": o.round_param and "param" in narrow,
        "ROUND_M": o.round_state and "exp_avg" in narrow,
        "ROUND_V": o.round_state and "exp_avg_sq" in narrow,
    }


def options(o: Options, device: torch.device) -> dict[str, Any]:
    """The arguments of ``prepare`` that come from the options alone."""
    given = option_values(("lr", "reach_factor", "max_reach", "grad_factor"), o, device)
    given |= {name: float(getattr(o, name)) for name in ("beta1", "beta2", "weight_decay", "travel")}
    return given | {"cap": CAP if o.modulator.needs_mean else 1.0, "log_beta1": log(o.beta1)}


def option_values(names: Iterable[str], o: Options, device: torch.device) -> dict[str, Any]:
    """Options as numbers, or as tensors if they are on the device: the CPU would wait to read these."""
    given: dict[str, Any] = {}
    for name in names:
        value: Scalar = getattr(o, name)
        stays = isinstance(value, Tensor) and value.device.type == device.type
        given[name] = 0.0 if stays else float(value)
        given[f"{name}_at"] = value.to(device, non_blocking=True) if stays else None
    return given


def log(beta: float) -> float:
    """ln β; −∞ for β = 0."""
    return math.log(beta) if beta > 0 else -math.inf
