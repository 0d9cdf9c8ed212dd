"""Small helpers that several test files share."""

from __future__ import annotations

import copy
import io
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

# Two workers of pytest-xdist on two cores: their threads would wait for each other. Before torch reads it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from hatam import HATAM
from hatam.fused import cpu
from hatam.fused.batches import Batch
from hatam.options import peak_like_lr
from hatam.state import hidden_flags
from hatam.storage import is_quantized
from hatam.testing import Reference
from hatam.update import Options

# The machine is shared and slow at times: no deadline. The same examples every run: a failure can be repeated.
settings.register_profile("hatam", deadline=None, derandomize=True, max_examples=15, database=None)
settings.load_profile("hatam")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What a test shows to be compatible goes to the report of its outcome, for docs/compatibility.md."""
    for item in items:
        item.user_properties += [("compatible", ": ".join(mark.args)) for mark in item.iter_markers("compatible")]


class Falling(HATAM):
    """HATAM in the second half of a schedule: lr is half its peak, and no travel is asked for, so that there is a reach
    from the second step on."""

    def __init__(self, params: Any, *args: Any, **options: Any) -> None:
        super().__init__(params, *args, **{"travel": 0.0, "horizon": math.inf, **options})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group["lr_peak"] = 2 * float(group["lr"])
        group["lr_peak"] = peak_like_lr(group)


class Reaching(Falling):
    """And every tensor has a reach, of whatever shape."""

    def __init__(self, params: Any, *args: Any, **options: Any) -> None:
        super().__init__(params, *args, **{"hidden": True, **options})


VARIANTS: dict[str, dict[str, Any]] = {"uniform": {"modulator": "uniform"}, "relative": {"modulator": "relative"}}
"""Every modulator, otherwise at the defaults, but that every tensor reaches, and far enough to be seen."""
for options in VARIANTS.values():
    options |= {"hidden": True, "gamma": 0.5, "travel": 0.0, "horizon": math.inf}

every_variant = pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
every_path = pytest.mark.parametrize("foreach", [False, True], ids=["single", "foreach"])


@contextmanager
def kernel_calls() -> Iterator[list[int]]:
    """How many tensors each call of the CPU kernel took, so that a silent fallback fails a test."""
    taken: list[int] = []
    step = cpu.step

    def counted(batch: Batch, o: Options) -> None:
        taken.append(len(batch.params))
        step(batch, o)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "step", counted)
        yield taken


def oracles(params: list[torch.nn.Parameter], optimizer: HATAM) -> list[Reference]:
    """A reference for every parameter of the optimizer's only group."""
    group = optimizer.param_groups[0]
    (beta1, beta2), flags = group["betas"], hidden_flags(group)
    same = {key: group[key] for key in ("eps", "weight_decay", "gamma", "travel", "horizon", "modulator", "fade")}
    made = [Reference(p, beta1, beta2, **same, hidden=flag) for p, flag in zip(params, flags, strict=True)]
    for oracle in made:
        oracle.peak = float(group["lr_peak"])
    return made


def through_a_file(state_dict: dict[str, Any]) -> dict[str, Any]:
    """Saved and loaded as a careful user does."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


def generator(seed: int = 0) -> torch.Generator:
    """A seeded generator of its own, so that no test depends on another."""
    return torch.Generator().manual_seed(seed)


def parameters(
    shapes: Iterable[tuple[int, ...]] = ((5, 4), (7,), ()), dtype: torch.dtype = torch.float32, seed: int = 0
) -> list[torch.nn.Parameter]:
    """Parameters with normal entries."""
    rng = generator(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=rng, dtype=dtype)) for shape in shapes]


def gradients(params: list[torch.nn.Parameter], steps: int, seed: int = 1) -> list[list[Tensor]]:
    """Prescribed gradients for some steps: a slight drift plus noise, at a scale of its own in every coordinate."""
    rng = generator(seed)
    scales = [torch.randn(p.shape, generator=rng).exp() for p in params]
    drifts = [torch.randn(p.shape, generator=rng) for p in params]

    def draw(p: Tensor, scale: Tensor, drift: Tensor) -> Tensor:
        return (scale * (0.1 * drift + torch.randn(p.shape, generator=rng))).to(p.dtype)

    complex_too = [p.is_complex() for p in params]
    return [
        [
            torch.complex(draw(p.real, s, d), draw(p.real, s, d)) if is_complex else draw(p, s, d)
            for p, s, d, is_complex in zip(params, scales, drifts, complex_too, strict=True)
        ]
        for _ in range(steps)
    ]


def feed(
    optimizer: torch.optim.Optimizer,
    params: list[torch.nn.Parameter],
    grads: list[list[Tensor]],
    lrs: list[float] | None = None,
) -> None:
    """One step for every list of gradients, with the learning rate of that step."""
    for i, row in enumerate(grads):
        if lrs is not None:
            for group in optimizer.param_groups:
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(lrs[i])
                else:
                    group["lr"] = lrs[i]
        for param, grad in zip(params, row, strict=True):
            param.grad = grad.clone()
        optimizer.step()


def twins(params: list[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    """Parameters of the same values."""
    return copy.deepcopy(params)


def equal(xs: Iterable[Tensor], ys: Iterable[Tensor]) -> bool:
    """Bit for bit."""
    return all(torch.equal(x, y) for x, y in zip(xs, ys, strict=True))


def bits(x: Tensor) -> bytes:
    """The bits of a tensor: here NaN equals NaN, and 0 is not −0."""
    return x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b""


def state_bits(optimizer: torch.optim.Optimizer) -> list[bytes]:
    """The bits of every state tensor, of quantized ones those of the numbers that they stand for."""
    tensors = [x for state in optimizer.state.values() for x in state.values()]
    return [bits(x.dequantize() if is_quantized(x) else x) for x in tensors]


def relative_error(x: Tensor, reference: Tensor) -> float:
    """Largest difference over the tensor by its largest entry."""
    if x.numel() == 0:
        return 0.0
    x, reference = x.detach().double(), reference.detach().double()
    return float((x - reference).abs().max() / reference.abs().max().clamp(min=1e-300))


def cosine(steps: int, peak: float, warm_up: int = 0) -> list[float]:
    """A linear warm-up, then half a cosine down to exactly 0 at the last step."""
    rise = [peak * (i + 1) / warm_up for i in range(warm_up)]
    fall = steps - warm_up
    angles = torch.arange(1, fall + 1, dtype=torch.float64) * torch.pi / fall
    return rise + (peak * 0.5 * (1 + torch.cos(angles))).tolist()[:-1] + [0.0]
