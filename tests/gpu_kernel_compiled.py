"""Compiles what the GPU kernel launches for a GPU that need not be there; test_gpu_kernel.py runs this by itself.

The launches are those of optimizers on CPU tensors, up to the machine code: arguments, their types and the source.
"""

from __future__ import annotations

import re
from typing import Any

import torch
import triton
from conftest import Reaching, feed, gradients, parameters
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.jit import JITFunction

from hatam import fused
from hatam.fused import gpu


class NoDevice(DriverBase):
    """A device as the compiler sees one."""

    get_current_device = get_current_stream = lambda self, *_: 0
    map_python_to_cpp_type = get_active_torch_device = get_benchmarker = is_active = lambda *_: True

    def __init__(self) -> None: ...
    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def check(name: str, ptx: str, double: bool) -> None:
    """No precision is lost in the options, memory is read 16 bytes at a time, and rounding is that of the CPU."""
    if name == "prepare":
        assert ptx.count(".param .f64") == 13, "the options must be passed in float64"
    if name == "update":
        assert re.search(r"ld\.global\.v2\.b64" if double else r"ld\.global\.v4\.b32", ptx), "reads are not wide"
        assert re.search(r"st\.global\.v2\.b64" if double else r"st\.global\.v4\.b32", ptx), "writes are not wide"
        assert not re.search(r"fma\.rn\.f32|div\.full|sqrt\.approx|\.ftz", ptx), "arithmetic is not that of IEEE 754"


def main() -> None:
    """A step of a few optimizers."""
    triton.runtime.driver.set_active(NoDevice())
    compiled: set[tuple[str, Any]] = set()
    run = JITFunction.run

    def compile_only(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        check(self.fn.__name__, kernel.asm["ptx"], kwargs.get("P") == gpu.kernels().tl.float64)
        compiled.add((self.fn.__name__, kernel.hash))

    JITFunction.run = compile_only
    fused.KERNELS["cpu"] = gpu
    half, random = torch.bfloat16, {"bf16_stochastic_round": True, "seed": 2**32 - 1}
    for dtype, options in (
        (torch.float32, {}),
        (torch.float32, {"state_dtype": half}),
        (half, random),
        (half, {"state_dtype": torch.float32}),
        (torch.float64, {"eps": 1e-6}),
    ):
        # Without a reach, and with S = 1, the kernel does less: two storages show it.
        for kind in ({"modulator": "relative"}, {}, {"hidden": None})[: 3 if options in ({}, random) else 1]:
            lr = torch.tensor(0.01) if options else 0.01
            params = parameters([(3, 1), (gpu.CHUNK,)], dtype)
            optimizer = Reaching(params, lr, fused=True, **options, **kind)
            if options:
                optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(0.0)
            feed(optimizer, params, gradients(params, 1))
    names = [name for name, _ in compiled]
    print({name: names.count(name) for name in ("prepare", "update", "finish")})
    assert names.count("update") == 9


if __name__ == "__main__":
    main()
