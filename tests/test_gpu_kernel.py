"""The GPU kernel on a machine without a GPU: in Triton's interpreter, and compiled for a GPU that is not there.

Triton asks at its import whether to interpret, so this needs processes of its own.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hatam import HATAM, fused
from hatam.fused import gpu

pytest.importorskip("triton")
HERE = Path(__file__).parent


def run(*arguments: str, **environment: str) -> str:
    """What a Python process prints; it must succeed."""
    command = [sys.executable, *arguments]
    paths = os.pathsep.join([str(HERE.parent / "src"), str(HERE)])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths, **environment}
    done = subprocess.run(command, env=environment, cwd=HERE.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-4000:]
    return done.stdout


def test_in_the_interpreter() -> None:
    """All of gpu_kernel_cases.py."""
    arguments = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(HERE / "gpu_kernel_cases.py"))
    assert " passed" in run(*arguments, TRITON_INTERPRET="1")


def test_compiles_for_a_gpu(tmp_path: Path) -> None:
    """Every launch of a few optimizers, down to machine code, with what its speed and its bits depend on."""
    assert run(str(HERE / "gpu_kernel_compiled.py"), TRITON_CACHE_DIR=str(tmp_path), TRITON_INTERPRET="0")


def test_hatam_imports_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """And says what is missing where it is asked for."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "hatam"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    anew = importlib.import_module("hatam")
    assert anew.HATAM is not HATAM
    assert "there is no fused GPU kernel: it needs Triton" in anew.fused.refusal({"cuda"})


def test_a_capture_without_a_step_before_it_is_refused(monkeypatch: Any) -> None:
    """No memory may be pinned in a capture."""
    monkeypatch.setattr(gpu, "_spares", {})
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(RuntimeError, match=r"captured in a CUDA graph with 3 tensors.*eager step.*before the capture"):
        gpu.tables(b"", gpu.Scratch(3, double=False, reaches=True, means=False), torch.device("cuda", 0))


def test_parts_of_a_group_have_spares_of_their_own(monkeypatch: Any) -> None:
    """However many tensors they have, and no more than some are kept."""
    monkeypatch.setattr(gpu, "_spares", {})
    cpu = torch.device("cpu")
    for address in (0, 1, 0):
        for gradient in (2, 3):
            gpu.reserve_pinned(bytes([address] * 8 + [gradient] * 8), 1, cpu)
    assert gpu._spares.keys() == {bytes([0] * 8), bytes([1] * 8)}
    for address in range(gpu.MAX_TABLES + 5):
        gpu.reserve_pinned(address.to_bytes(8, "little"), 1, cpu)
    assert len(gpu._spares) == gpu.MAX_TABLES


def test_none_takes_every_kernel() -> None:
    """Unless something else was asked for; captured steps belong to the GPU's."""
    group = HATAM([torch.zeros(1)], 0.01).param_groups[0]
    assert fused.enabled_devices(group) == fused.enabled_devices({**group, "fused": True}) == ("cpu", "cuda")
    assert fused.enabled_devices({**group, "capturable": True}) == ("cuda",)
    for other in ({"fused": False}, {"foreach": False}, {"foreach": True}, {"differentiable": True}):
        assert fused.enabled_devices({**group, **other}) == ()


def test_where_triton_cannot_compile_there_is_no_kernel(monkeypatch: Any) -> None:
    """Said before anything has moved, and why."""

    class Refuses:
        def __getitem__(self, grid: Any) -> Any:
            raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu.kernels(), "nothing", Refuses())
    gpu.unavailable_reason.cache_clear()
    try:
        assert "there is no fused GPU kernel: Triton cannot compile" in fused.refusal({"cuda"})
        assert "Failed to find C compiler" in gpu.unavailable_reason()
    finally:
        gpu.unavailable_reason.cache_clear()
