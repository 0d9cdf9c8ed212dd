"""What a step costs beside torch's fused AdamW: time on the CPU, memory, the host's part on a GPU, a training step.

All contenders share parameters and gradients in one process and take turns; a ratio is that of one turn to AdamW's in
the same round, so that a slow moment of the machine harms all alike. Memory is that of a fresh process. The host's part
is measured without a GPU: the GPU's path gets CPU tensors, and its launches do nothing, AdamW's neither.

    python benchmarks/step_cost.py             measure, write the records, fill in the tables
    python benchmarks/step_cost.py --render    fill in from the records alone
"""

from __future__ import annotations

import copy
import ctypes
import json
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import common
import torch
from common import CONTENDERS, REFERENCE, ROOT, Work, in_turns, made, ratios, shown
from pytorch_optimizer import SAM
from torch import Tensor, nn

from hatam import fused
from hatam.bench import files
from hatam.fused import gpu
from hatam.storage import is_quantized

Record = dict[str, Any]

SHAPES: dict[str, list[tuple[int, ...]]] = {
    "MLP, 1 k": [(16, 32), (16,), (16, 16), (16,), (10, 16), (10,)],
    "MLP, 100 k": [(200, 200), (200,), (200, 200), (200,), (100, 200), (100,)],
    "transformer, 3 M": [*[(1024, 256), (1024,), (256, 1024), (256,), (768, 256), (256, 256), (256,), (256,)] * 4],
    "2,000 small, 2 M": [(1000,)] * 2000,
    "25 M": [(431, 1000)] * 58,
    "100 M": [(1725, 1000)] * 58,
}
LARGEST, AT_LARGEST = "100 M", (REFERENCE, "HATAM", "HATAM relative", "HATAM, bf16 state")
HOST_AT = ("MLP, 1 k", "transformer, 3 M", "25 M", "2,000 small, 2 M")


def parameters(shape: str) -> list[nn.Parameter]:
    """Random parameters with random gradients."""
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(size)) for size in SHAPES[shape]]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def chosen(shape: str) -> list[str]:
    """The contenders that are measured at this shape."""
    return list(AT_LARGEST if shape == LARGEST else CONTENDERS)


def write(part: str, record: Record) -> None:
    environment = {**files.environment(), "threads": torch.get_num_threads()}
    files.write(ROOT / f"results/step_cost/{part}.json", {"environment": environment, **record})


# A step of the optimizer ----------------------------------------------------------------------------------------------


def measure_steps() -> None:
    """Every shape in turn, written as soon as it is there."""
    result: Record = {"shapes": {}, "memory": {name: fresh_memory("25 M", name) for name in chosen("25 M")}}
    for shape in SHAPES:
        params = parameters(shape)
        elements = sum(p.numel() for p in params)
        rounds = 25 if elements > 10**6 else 100
        taken = in_turns({name: made(name, params).step for name in chosen(shape)}, rounds)
        result["shapes"][shape] = {"parameters": elements, "rounds": rounds, "seconds": taken}
        write("step_cost", result)
        print(shape, {name: shown(ratios(taken, name)) for name in taken}, flush=True)


def memory(shape: str, name: str) -> dict[str, float]:
    """Bytes of state per parameter, and of temporaries in a step, in this process."""
    params = parameters(shape)
    elements = sum(p.numel() for p in params)
    optimizer = made(name, params)
    for _ in range(2):
        optimizer.step()
    ctypes.CDLL(None).malloc_trim(0)  # else the temporaries of these steps may still be held, and hide the next ones
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = status("VmRSS")
    optimizer.step()
    tensors = [x for s in optimizer.state.values() for x in s.values() if isinstance(x, Tensor) and x.dim()]
    state = sum(x.numel() * (1 if is_quantized(x) else x.element_size()) for x in tensors)
    return {"state": state / elements, "temporary": max(0, status("VmHWM") - before) / elements}


def status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(lines[key].split()[0])


def fresh_memory(shape: str, name: str) -> Any:
    """:func:`memory` in a process of its own."""
    command = [sys.executable, __file__, "--memory", shape, name]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def step_table(record: Record) -> str:
    """Median ratios with quartiles, and memory per parameter."""
    shapes, rows = record["shapes"].values(), []
    for name in list(CONTENDERS)[1:]:
        taken = [shape["seconds"] for shape in shapes]
        used = record["memory"].get(name)
        cells = [f"{used['state']:.1f}", f"{used['temporary']:.1f}"] if used else ["", ""]
        rows.append([name, *(shown(ratios(each, name)) if name in each else "" for each in taken), *cells])
    rows.append(["n (rounds)", *(str(shape["rounds"]) for shape in shapes), "", ""])
    return common.table([f"step time / {REFERENCE}", *record["shapes"], "state, B", "temporary, B"], rows)


def brief(record: Record) -> str:
    """HATAM's medians in a sentence."""
    found = [(name, shape) for name, shape in record["shapes"].items() if name in ("MLP, 1 k", "25 M", LARGEST)]
    each = [f"{statistics.median(ratios(x['seconds'], 'HATAM')):.2f} ({name}, n = {x['rounds']})" for name, x in found]
    return (
        f"Step time with a reach, relative to torch's fused AdamW: {', '.join(each)}. These are medians on a CPU with "
        f"{record['environment']['threads']} threads, in float32."
    )


# The host's part ------------------------------------------------------------------------------------------------------


def nothing(*args: Any, **kwargs: Any) -> None:
    """A launch."""


@contextmanager
def without_launches() -> Iterator[None]:
    """Inside, CPU tensors take the GPU's path, and no kernel runs."""
    loaded, kernel = gpu.kernels(), defaultdict(lambda: nothing)  # by grid
    empty = SimpleNamespace(prepare=kernel, update=kernel, finish=kernel, words=loaded.words, tl=loaded.tl)
    with (
        mock.patch.dict(fused.KERNELS, cpu=gpu),
        mock.patch.dict(vars(gpu), kernels=lambda: empty),
        mock.patch.dict(vars(torch), _fused_adamw_=nothing, _foreach_add_=nothing),
    ):
        yield


def measure_host() -> None:
    """Seconds of a step by shape and contender."""
    shapes = {}
    with without_launches():
        for shape in HOST_AT:
            params = parameters(shape)
            works = {name: made(name, params).step for name in (REFERENCE, "HATAM")}
            shapes[shape] = in_turns(works, max(15, 200 // (1 + len(params) // 20)), warm_up=5)
    write("host_time", {"shapes": shapes})


def host_table(record: Record) -> str:
    """Microseconds of both, and the median ratio with quartiles."""
    rows = []
    for shape, taken in record["shapes"].items():
        micro = [f"{1e6 * statistics.median(found):,.0f}" for found in taken.values()]
        rows.append([shape, *micro, shown(ratios(taken, "HATAM")), str(len(taken["HATAM"]))])
    return common.table(["host's part of a step", "AdamW fused, µs", "HATAM, µs", "ratio", "n"], rows)


# A training step ------------------------------------------------------------------------------------------------------

TRAINED = (REFERENCE, "HATAM", "HATAM, bf16 state", "SAM")
MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[int], tuple[Tensor, Tensor]]]] = {
    "conv net": (common.conv_net, lambda n: (torch.randn(n, 3, 32, 32), torch.randint(10, (n,)))),
    "transformer": (common.transformer, lambda n: (torch.randint(256, (n, 64)), torch.randint(256, (n, 64)))),
}


def step_of(name: str, model: nn.Module, x: Tensor, y: Tensor) -> Work:
    """Forward, backward and update of one of them."""
    if name != "SAM":
        return common.training_step(model, x, y, made(name, model.parameters()).step)
    sam = SAM(model.parameters(), torch.optim.AdamW, fused=True)
    return common.training_step(model, x, y, sam.first_step, sam.second_step)


def measure_trainings() -> None:
    """Every model and batch size, on a copy of the same model and on the same batch."""
    cases: list[Record] = []
    for name, (make, draw) in MODELS.items():
        for n in (8, 32, 128):
            torch.manual_seed(0)
            model, (x, y) = make(), draw(n)
            taken = in_turns({each: step_of(each, copy.deepcopy(model), x, y) for each in TRAINED}, 40)
            elements = sum(p.numel() for p in model.parameters())
            cases.append({"model": name, "parameters": elements, "batch_size": n, "seconds": taken})
            write("training_cost", {"cases": cases})


def training_table(record: Record) -> str:
    """A row for each model and batch size."""
    rows = []
    for x in record["cases"]:
        cells = [shown(ratios(x["seconds"], name), digits=3) for name in TRAINED[1:]]
        n = str(len(x["seconds"][REFERENCE]))
        rows.append([f"{x['model']}, {x['parameters'] / 1e6:.1f} M", str(x["batch_size"]), *cells, n])
    return common.table([f"training step / {REFERENCE}", "batch", *TRAINED[1:], "n"], rows)


PARTS = {
    "step_cost": (measure_steps, step_table),
    "host_time": (measure_host, host_table),
    "training_cost": (measure_trainings, training_table),
}

if __name__ == "__main__":
    if "--memory" in sys.argv:
        print(json.dumps(memory(*sys.argv[-2:])))
        sys.exit()
    for part, (measure, draw) in PARTS.items():
        if "--render" not in sys.argv:
            measure()
        common.fill_in("docs/speed.md", part.replace("_", "-"), draw(common.read(f"results/step_cost/{part}.json")))
    common.fill_in("README.md", "step-cost-brief", brief(common.read("results/step_cost/step_cost.json")))
