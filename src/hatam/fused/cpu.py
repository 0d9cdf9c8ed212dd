"""Loads the compiled CPU kernel and passes it the tensors of a batch as raw pointers.

The kernel is a shared library, built with the package. One call makes one pass over memory for all tensors of a batch,
with 4 reads and 3 writes per element, as AdamW's does. It runs on ``torch.get_num_threads()`` threads of torch's OpenMP
runtime. The number of threads does not change its results.
"""

from __future__ import annotations

import ctypes
import logging
from array import array
from functools import cache
from pathlib import Path

import torch

from ..modulators import CAP, RELATIVE, UNIFORM
from ..reach import GROWTH
from ..storage import MOMENTS, REACH_STATE
from ..update import EPS_MARGIN, Options
from .batches import Batch, dtypes_match

LAYOUT = 13  # HATAM_LAYOUT of cpu.h
LIBRARY = Path(__file__).with_name("_cpu.so")
REMEDY = "install hatam where a C compiler is present (in its clone: pip install --force-reinstall --no-deps .)"
DTYPE = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}


class _Table(ctypes.Structure):
    _fields_ = [
        ("tensors", ctypes.c_int64),
        *((name, ctypes.c_void_p) for name in ("numel", "param_index", "param", "grad")),
        *((name, ctypes.c_void_p) for name in (*MOMENTS, "step", *REACH_STATE, "shard_sums")),
    ]


class _Options(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_double)
            for name in (
                "lr",
                "beta1",
                "beta2",
                "eps",
                "weight_decay",
                "lr_peak",
                "reach_factor",
                "travel",
                "max_reach",
                "cap",
            )
        ),
        *((name, ctypes.c_double) for name in ("grad_factor", "no_gradient_yet", "growth")),
        *((name, ctypes.c_int32) for name in ("uniform", "param_dtype", "exp_avg_dtype", "exp_avg_sq_dtype")),
        *((name, ctypes.c_int32) for name in ("step_dtype", "scalar_dtype", "round_param", "round_state")),
        ("seed", ctypes.c_uint32),
        ("threads", ctypes.c_int32),
    ]


@cache
def load() -> ctypes.CDLL | str:
    """The kernel's library, or the reason why there is none."""
    if not LIBRARY.exists():
        return f"it was not built when hatam was installed; {REMEDY}"
    try:
        library = ctypes.CDLL(str(LIBRARY))
        layout = library.hatam_layout()
    except (OSError, AttributeError) as error:
        return f"it does not load ({error}); {REMEDY}"
    return library if layout == LAYOUT else f"the binary is of another version of hatam; {REMEDY}"


def unavailable_reason() -> str | None:
    """The reason why there is no kernel, or None if there is one."""
    library = load()
    return library if isinstance(library, str) else None


def library() -> ctypes.CDLL:
    """The kernel's library. Raises RuntimeError if there is none."""
    loaded = load()
    if isinstance(loaded, str):
        raise RuntimeError(f"there is no fused CPU kernel: {loaded}")
    return loaded


@cache
def torch_threads() -> ctypes.c_void_p:
    """``GOMP_parallel`` of torch's OpenMP runtime. It is a null pointer, which means one thread, if torch has none."""
    name = next(Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"), None)
    try:
        return ctypes.cast(ctypes.CDLL(str(name)).GOMP_parallel, ctypes.c_void_p)
    except (OSError, AttributeError):
        logging.getLogger("hatam").info("torch's OpenMP runtime was not found: the fused CPU kernel uses one thread")
        return ctypes.c_void_p()


def supports(dtypes: dict[str, torch.dtype], o: Options) -> bool:
    """Whether the kernel has a loop for these options and dtypes, which are by state key, "param" and "grad"."""
    known = dtypes_match(dtypes) and set(dtypes.values()) <= DTYPE.keys() and o.modulator in (UNIFORM, RELATIVE)
    return known and bool(library().hatam_supports(ctypes.byref(_options(dtypes, o))))


def step(batch: Batch, o: Options) -> None:
    """Take one step with a batch that :func:`supports` accepts."""
    if batch.kernel_cache is None:
        indices = array("I", batch.param_indices)
        columns = {"param_index": indices, **batch.addresses}
        batch.kernel_cache = indices, _Table(len(indices), **{key: x.buffer_info()[0] for key, x in columns.items()})
    _, table = batch.kernel_cache
    table.grad = batch.addresses["grad"].buffer_info()[0]
    options = _options(batch.dtypes, o)
    if not library().hatam_step(ctypes.byref(table), ctypes.byref(options), torch_threads()):
        raise MemoryError(
            f"the fused CPU kernel found no memory for its table of {len(batch.params)} tensors; none has changed"
        )
    torch.autograd.graph.increment_version(batch.params)


def _options(dtypes: dict[str, torch.dtype], o: Options) -> _Options:
    return _Options(
        float(o.lr),
        o.beta1,
        o.beta2,
        o.eps,
        o.weight_decay,
        float(o.lr_peak),
        float(o.reach_factor),
        o.travel,
        float(o.max_reach),
        CAP,
        float(o.grad_factor),
        EPS_MARGIN * o.eps,
        GROWTH,
        "denom_mean" not in dtypes,
        *(DTYPE[dtypes[key]] for key in ("param", *MOMENTS, "step")),
        DTYPE[dtypes.get("reach", dtypes["step"])],
        o.round_param,
        o.round_state,
        o.seed,
        torch.get_num_threads(),
    )
