"""What HATAM adds to AdamW's messages and memory at scale, by formulas that tests hold against counted traffic.

python benchmarks/scale.py     fill in docs/scale.md
"""

from __future__ import annotations

from pathlib import Path

from hatam import sharded
from hatam.bench import report

PAGE = Path(__file__).resolve().parent.parent / "docs/scale.md"
MODELS = {  # parameters and tensors: of Llama 3's published configurations, and of one a hundred layers deep
    "1 B": (1.24e9, 146),
    "8 B": (8.03e9, 291),
    "70 B": (70.6e9, 723),
    "405 B": (405.9e9, 1137),
    "1 T": (1e12, 1200),
}
RANKS = (1, 4, 64, 512, 4096)
PER_TENSOR = 4 * 5 + 8 * 5  # bytes: step, two means, radius and scale; the three sums of a part, copies and numel


def of_fsdp(parameters: float, ranks: int) -> float:
    """Bytes that a process receives in a step, in bfloat16: parameters twice, and gradients once."""
    return 3 * 2 * parameters * (ranks - 1) / ranks


def of_hatam(tensors: int, ranks: int, **kind: str) -> float:
    """Bytes that a process receives of the sums, by a ring."""
    return 2 * sharded.payload(tensors, **kind) * (ranks - 1) / ranks


def human(size: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def messages() -> str:
    lines = [
        "| parameters | tensors | ranks | FSDP2, bytes | HATAM, default | HATAM, radius='lr' | share of FSDP2's |",
        "|---|" + "---:|" * 6,
    ]
    for name, (parameters, tensors) in MODELS.items():
        for ranks in RANKS:
            default, by_lr = of_hatam(tensors, ranks), of_hatam(tensors, ranks, radius="lr")
            whole = of_fsdp(parameters, ranks)
            share = f"{default / whole:.0e}" if whole else ""
            cells = (name, f"{tensors:,}", f"{ranks:,}", human(whole), human(default), human(by_lr), share)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def memory() -> str:
    head = [f"{ranks:,} rank{'s' * (ranks > 1)}" for ranks in RANKS]
    lines = [f"| parameters | {' | '.join(head)} | HATAM's beyond AdamW's |", "|---|" + "---:|" * (len(RANKS) + 1)]
    for name, (parameters, tensors) in MODELS.items():
        cells = [human(8 * parameters / ranks) for ranks in RANKS]
        lines.append(f"| {name} | {' | '.join(cells)} | {human(PER_TENSOR * tensors)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    report.fill_in(PAGE, "messages", messages())
    report.fill_in(PAGE, "memory", memory())
