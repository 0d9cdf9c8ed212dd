"""What a reach around another optimizer costs: a step in PyTorch, and a jitted step in JAX, in turns in one process.

python benchmarks/around_cost.py             measure, write the record, fill in docs/around_your_optimizer.md
python benchmarks/around_cost.py --render    fill in from the record alone
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import common
import torch
from common import ROOT, Work, halfway, in_turns, reaching, shown
from step_cost import SHAPES, parameters

from hatam import Straightened
from hatam.bench import files

RECORD, PAGE = ROOT / "results/around_cost.json", "docs/around_your_optimizer.md"
TORCH_SHAPES, JAX_SHAPES, ROUNDS = ("MLP, 100 k", "transformer, 3 M", "25 M"), ("MLP, 100 k", "transformer, 3 M"), 40
PAIRS = {  # what is compared with what
    "Straightened(SGD) / SGD": ("Straightened(SGD)", "SGD"),
    "Straightened(AdamW) / AdamW": ("Straightened(AdamW)", "AdamW"),
    "Straightened(AdamW) / HATAM": ("Straightened(AdamW)", "HATAM"),
    "hatam.optax.hatam / optax.adamw": ("hatam.optax", "optax.adamw"),
    "hatam.optax.hatam / schedule_free_adamw": ("hatam.optax", "schedule_free_adamw"),
}
TORCH: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda params: torch.optim.SGD(params, 1e-3, momentum=0.9),
    "AdamW": lambda params: torch.optim.AdamW(params, 1e-3, fused=True),
    "HATAM": reaching,
}


def torch_steps(shape: str) -> dict[str, Work]:
    """The works of PyTorch, all on the same parameters."""
    params = parameters(shape)
    made = {name: make(params) for name, make in TORCH.items()}
    for name in ("SGD", "AdamW"):
        made[f"Straightened({name})"] = halfway(Straightened(TORCH[name](params), travel=0.0, hidden=True))
    return {name: optimizer.step for name, optimizer in made.items()}


def jax_steps(shape: str) -> dict[str, Work]:
    """The works of JAX: update and parameters in one jitted program, at half of a cosine."""
    import jax
    import optax

    import hatam.optax

    params = {str(i): jax.numpy.asarray(p.detach().numpy()) for i, p in enumerate(parameters(shape))}
    schedule = optax.cosine_decay_schedule(1e-3, 2 * ROUNDS)
    found: dict[str, Work] = {}
    for name, transform in {
        "optax.adamw": optax.adamw(schedule, 0.9, 0.95),
        "schedule_free_adamw": optax.contrib.schedule_free_adamw(1e-3, b2=0.95),
        "hatam.optax": hatam.optax.hatam(schedule, travel=0.0),
    }.items():

        @jax.jit
        def step(params: Any, state: Any, transform: Any = transform) -> Any:
            updates, state = transform.update(params, state, params)  # the parameters serve as gradients
            return optax.apply_updates(params, updates), state

        held = [params, transform.init(params)]

        def work(step: Any = step, held: list[Any] = held) -> None:
            held[:] = jax.block_until_ready(step(*held))

        found[name] = work
    return found


def measure() -> dict[str, Any]:
    """Seconds of every turn, by shape."""
    torch.set_num_threads(2)
    seconds = {shape: in_turns(torch_steps(shape), ROUNDS) for shape in TORCH_SHAPES}
    for shape in JAX_SHAPES:
        seconds[shape] |= in_turns(jax_steps(shape), ROUNDS)
    return {"environment": files.environment(), "seconds": seconds}


def text(record: dict[str, Any]) -> str:
    """A row for each pair: medians of the rounds' ratios with quartiles."""
    rows = []
    for pair, (above, below) in PAIRS.items():
        cells = [record["seconds"][shape] for shape in SHAPES if shape in TORCH_SHAPES]
        ratios = [
            [a / b for a, b in zip(each[above], each[below], strict=True)] if above in each else [] for each in cells
        ]
        rows.append([pair, *(shown(found) if found else "" for found in ratios)])
    return common.table([f"step time, n = {ROUNDS}", *TORCH_SHAPES], rows)


if __name__ == "__main__":
    if "--render" not in sys.argv:
        files.write(RECORD, measure())
    common.fill_in(PAGE, "around-cost", text(json.loads(RECORD.read_text(encoding="utf-8"))))
