"""What one step of the optimizer costs: time, bandwidth and memory, against torch's fused AdamW.

All contenders of a shape share parameters and gradients in one process and take turns; a ratio is that of one turn to
AdamW's in the same round, so that a slow moment of the machine harms all alike. Memory is that of a fresh process.

    python benchmarks/step_cost.py             measure, write the record, draw, fill in the table
    python benchmarks/step_cost.py --render    draw and fill in from the record alone
"""

from __future__ import annotations

import argparse
import ctypes
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import models
import optimi
import pytorch_optimizer
import torch

from hatam import HATAM, PublishedHATAM
from hatam.bench import records, report
from hatam.storage import is_quantized

matplotlib.use("Agg")  # no display needed
from matplotlib import pyplot as plt

Params = list[torch.nn.Parameter]

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = "AdamW fused"
BF16 = torch.bfloat16

SHAPES: dict[str, list[tuple[int, ...]]] = {
    "MLP, 1 k": [(16, 32), (16,), (16, 16), (16,), (10, 16), (10,)],
    "MLP, 100 k": [(200, 200), (200,), (200, 200), (200,), (100, 200), (100,)],
    "transformer, 3 M": [*[(1024, 256), (1024,), (256, 1024), (256,), (768, 256), (256, 256), (256,), (256,)] * 4],
    "2,000 small, 2 M": [(1000,)] * 2000,
    "25 M": [(431, 1000)] * 58,
    "100 M": [(1725, 1000)] * 58,
}
LARGEST = "100 M"

CONTENDERS: dict[str, Callable[[Params], torch.optim.Optimizer]] = {
    REFERENCE: lambda ps: torch.optim.AdamW(ps, fused=True),
    "AdamW foreach": lambda ps: torch.optim.AdamW(ps, foreach=True),
    "AdamW single": lambda ps: torch.optim.AdamW(ps, foreach=False),
    "HATAM": lambda ps: reaching(ps),
    "HATAM relative": lambda ps: reaching(ps, modulator="relative"),
    "HATAM, bf16 state": lambda ps: reaching(ps, state_dtype=BF16),
    "HATAM foreach": lambda ps: reaching(ps, foreach=True),
    "HATAM single": lambda ps: reaching(ps, foreach=False),
    "HATAM compiled": lambda ps: compiled(reaching(ps, lr=torch.tensor(1e-3), foreach=False)),
    "PublishedHATAM": lambda ps: PublishedHATAM(ps),
    "Adan (pytorch-optimizer)": lambda ps: pytorch_optimizer.Adan(ps),
    "MARS (pytorch-optimizer)": lambda ps: pytorch_optimizer.MARS(ps),
    "AdaBelief (pytorch-optimizer)": lambda ps: pytorch_optimizer.AdaBelief(ps),
    "AdamW (torch-optimi)": lambda ps: optimi.AdamW(ps, 1e-3),
    "Adan (torch-optimi)": lambda ps: optimi.Adan(ps, 1e-3),
}
AT_LARGEST = (REFERENCE, "HATAM", "HATAM relative", "HATAM, bf16 state")
COMPILED_AT = ("MLP, 1 k", "MLP, 100 k")  # compiling takes minutes where there are many tensors
# Bytes that one pass has to read and write per float32 parameter: w, g, m, v in, all but g out.
MOVED = {REFERENCE: 28, "HATAM": 28, "HATAM relative": 28, "HATAM, bf16 state": 24}


def reaching(params: Params, **options: Any) -> HATAM:
    """With a reach in every tensor, of whatever shape."""
    return models.reaching(params, hidden=True, **options)


def compiled(optimizer: HATAM) -> HATAM:
    """The optimizer with its step compiled."""
    optimizer.step = torch.compile(optimizer.step)  # type: ignore[method-assign]
    return optimizer


def parameters(shape: str) -> Params:
    """Random parameters with random gradients."""
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(size)) for size in SHAPES[shape]]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def count(shape: str) -> int:
    return sum(p.numel() for p in parameters(shape))


def chosen(shape: str) -> list[str]:
    """The contenders that are measured at this shape."""
    if shape == LARGEST:
        return list(AT_LARGEST)
    return [name for name in CONTENDERS if name != "HATAM compiled" or shape in COMPILED_AT]


def timed(shape: str, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step of every contender in every round, in an order drawn anew."""
    params = parameters(shape)
    optimizers = {name: CONTENDERS[name](params) for name in chosen(shape)}
    names = list(optimizers)
    for optimizer in optimizers.values():
        for _ in range(3):
            optimizer.step()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    order = random.Random(0)
    for _ in range(rounds):
        for name in order.sample(names, len(names)):  # nobody always comes after the same one
            start = time.perf_counter()
            optimizers[name].step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def measured_bandwidth(elements: int = 50_000_000) -> dict[str, float]:
    """Bytes a second, in and out, of copying and of a change in place, on all threads; the median of several."""
    x, y = torch.randn(elements), torch.empty(elements)

    def of(work: Callable[[], Any]) -> float:
        seconds = []
        for _ in range(9):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        return 8 * elements / statistics.median(seconds)

    return {"copy": of(lambda: y.copy_(x)), "in place": of(lambda: x.neg_())}


def memory(shape: str, name: str) -> dict[str, float]:
    """Bytes of state per parameter, and of temporaries in a step, in this process."""
    params = parameters(shape)
    elements = sum(p.numel() for p in params)
    optimizer = CONTENDERS[name](params)
    for _ in range(2):
        optimizer.step()
    ctypes.CDLL(None).malloc_trim(0)  # else the temporaries of these steps may still be held, and hide the next ones
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = status("VmRSS")
    optimizer.step()
    return {"state": state_bytes(optimizer) / elements, "temporary": max(0, status("VmHWM") - before) / elements}


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Of the tensors that grow with the parameters."""
    tensors = [x for s in optimizer.state.values() for x in s.values() if isinstance(x, torch.Tensor) and x.dim()]
    return sum(x.numel() * (1 if is_quantized(x) else x.element_size()) for x in tensors)


def status(key: str) -> int:
    """A line of /proc/self/status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(key)


def fresh_memory(shape: str, name: str) -> dict[str, float]:
    """:func:`memory` in a process of its own."""
    command = [sys.executable, __file__, "--memory", shape, name]
    result: dict[str, float] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return result


def measure(rounds: int, record: Path) -> None:
    """Every shape in turn, written as soon as it is there."""
    result: dict[str, Any] = {
        "benchmark": "step cost",
        "environment": {**records.environment(), "threads": torch.get_num_threads()},
        "reference": REFERENCE,
        "bandwidth": measured_bandwidth(),
        "shapes": {},
        "memory": {name: fresh_memory("25 M", name) for name in chosen("25 M")},
    }
    for shape in SHAPES:
        few = max(15, rounds // 4) if count(shape) > 10**6 else rounds
        seconds = timed(shape, few)
        result["shapes"][shape] = {"parameters": count(shape), "rounds": few, "seconds": seconds}
        records.write(record, result)
        print(shape, {name: round(quartiles(ratios(seconds, name))[1], 3) for name in seconds}, flush=True)


def ratios(seconds: dict[str, list[float]], name: str) -> list[float]:
    return [x / y for x, y in zip(seconds[name], seconds[REFERENCE], strict=True)]


def quartiles(values: list[float]) -> tuple[float, float, float]:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def table(record: dict[str, Any]) -> str:
    """Median ratios with quartiles, and memory per parameter."""
    shapes = record["shapes"]
    rows = [
        f"| step time / {REFERENCE} | " + " | ".join(shapes) + " | state, B | temporary, B |",
        "|---|" + "---:|" * (len(shapes) + 2),
    ]
    for name in CONTENDERS:
        cells = []
        for shape in shapes.values():
            if name in shape["seconds"]:
                low, middle, high = quartiles(ratios(shape["seconds"], name))
                cells.append(f"{middle:.2f} ({low:.2f}–{high:.2f})")
            else:
                cells.append("")
        used = record["memory"].get(name)
        cells += [f"{used['state']:.1f}", f"{used['temporary']:.1f}"] if used else ["", ""]
        rows.append(f"| {name} | " + " | ".join(cells) + " |")
    rows.append("| n (rounds) | " + " | ".join(str(shape["rounds"]) for shape in shapes.values()) + " | | |")
    return "\n".join(rows) + "\n\n" + bandwidth(record)


def brief(record: dict[str, Any]) -> str:
    """HATAM's medians in a sentence."""
    found = [(name, shape) for name, shape in record["shapes"].items() if name in ("MLP, 1 k", "25 M", LARGEST)]
    each = [
        f"{quartiles(ratios(shape['seconds'], 'HATAM'))[1]:.2f} ({name}, n = {shape['rounds']})"
        for name, shape in found
    ]
    return (
        f"A step with a reach takes, where torch's fused AdamW takes 1, {', '.join(each)}: medians on a CPU with "
        f"{record['environment']['threads']} threads, in float32."
    )


def bandwidth(record: dict[str, Any]) -> str:
    """How fast each one-pass contender moves 25 M parameters, beside what the machine can."""
    shape, machine = record["shapes"]["25 M"], record["bandwidth"]
    speeds = {
        name: moved * shape["parameters"] / statistics.median(shape["seconds"][name]) for name, moved in MOVED.items()
    }
    each = "; ".join(f"{name} {MOVED[name]} B, {speed / 1e9:.0f} GB/s" for name, speed in speeds.items())
    return (
        f"Bytes moved per parameter, and how fast on 25 M parameters: {each}. The same machine copies at "
        f"{machine['copy'] / 1e9:.0f} GB/s, which also has to fetch what it overwrites, and changes numbers in place "
        f"at {machine['in place'] / 1e9:.0f} GB/s. Threads: {record['environment']['threads']}."
    )


def draw(record: dict[str, Any], stem: Path) -> None:
    """Ratios by shape, one line a contender."""
    with plt.rc_context({"svg.hashsalt": "hatam-step-cost", "font.size": 10}):
        figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
        colours = plt.colormaps["tab20"].colors
        for i, name in enumerate(CONTENDERS):
            shapes = [key for key, shape in record["shapes"].items() if name in shape["seconds"]]
            spread = [quartiles(ratios(record["shapes"][key]["seconds"], name)) for key in shapes]
            middle = [m for _, m, _ in spread]
            errors = [[m - low for low, m, _ in spread], [high - m for _, m, high in spread]]
            marker, width = ("o", 2.0) if name.startswith("HATAM") else ("s", 1.0)
            shapes = [key.replace(", ", "\n") for key in shapes]
            axes.errorbar(shapes, middle, errors, label=name, marker=marker, linewidth=width, color=colours[i])
        axes.set(yscale="log", ylabel=f"step time / {REFERENCE}")
        axes.axhline(1, color="#555555", linewidth=0.8, linestyle=":")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(which="both", axis="y", color="#dddddd", linewidth=0.6)
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        for suffix, metadata in ((".png", {}), (".svg", {"Date": None})):
            figure.savefig(stem.with_suffix(suffix), dpi=150, metadata=metadata)
        plt.close(figure)


def main() -> None:
    """Measure unless told not to, then draw and fill in from the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100, help="of the small shapes; the large ones take a quarter")
    parser.add_argument("--record", type=Path, default=ROOT / "results/step_cost/step_cost.json")
    parser.add_argument("--render", action="store_true", help="do not measure, only draw from the record")
    parser.add_argument("--memory", nargs=2, metavar=("SHAPE", "CONTENDER"), help="print one contender's memory")
    options = parser.parse_args()
    if options.memory:
        print(json.dumps(memory(*options.memory)))
        return
    if not options.render:
        measure(options.rounds, options.record)
    record = json.loads(options.record.read_text(encoding="utf-8"))
    draw(record, ROOT / "docs/figures/step_cost")
    report.fill_in(ROOT / "docs/speed.md", "step-cost", table(record))
    report.fill_in(ROOT / "README.md", "step-cost-brief", brief(record))


if __name__ == "__main__":
    main()
