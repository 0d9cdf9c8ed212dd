"""Byte-level language models of Python's documentation and of sources.

The text is deterministic for a version of Python (see :mod:`.corpus`) and differs a little between versions: compare
runs of one version alone. The documentation is the language reference of ``help()`` and docstrings; a paragraph is in
one split alone. ``bytes`` sees its training text once, so that it underfits; ``bytes-overfit`` sees 20 kB of it again
and again; ``bytes-long`` sees all of it several times. ``bytes-large`` is a larger network on 21 MB of sources with
their docstrings, which depend on the versions of some packages too. There a file is in one split alone, phrases that
many files share are in all of them, and a run sees only a part of the text.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import Data, Shift, Split, Task, corpus
from .scores import bits, cross_entropy
from .splits import Array, kept

CONTEXT = 64
WINDOWS = {"validation": 256, "test": 1024, "train": 10_240}
OVERFIT_WINDOWS = 320
LARGE_CONTEXT = 128
LARGE_WINDOWS = {"validation": 784, "test": 784, "train": 163_840}
OF_A_FILE = 16  # windows of a file for validation or test
SHIFTED = 512  # windows of a shifted split
PARTS = {1: "library sources", 2: "tables of character codes", 3: "compressed sources"}  # ever further from prose


class Block(nn.Module):
    """A pre-norm block: causal attention, then two layers of which the inner is four times as wide."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]

    def attention(self, x: Tensor) -> Tensor:
        """Written out: torch's fused attention has no second derivative, which the sharpness needs."""
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        scores = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).masked_fill(future, -torch.inf)
        return self.out((scores.softmax(3) @ v).transpose(1, 2).reshape(n, length, width))  # type: ignore[no-any-return]


class FusedBlock(Block):
    """The same with torch's fused attention, which takes less time."""

    def attention(self, x: Tensor) -> Tensor:
        n, length, width = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(attended.transpose(1, 2).reshape(n, length, width))  # type: ignore[no-any-return]


class Transformer(nn.Module):
    """A decoder over bytes with learned positions: bytes ``(n, length)`` to logits ``(n, 256, length)``."""

    def __init__(
        self, width: int = 64, layers: int = 2, heads: int = 4, context: int = CONTEXT, block: type[Block] = Block
    ) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, width), nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = nn.Sequential(*(block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 256)

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks(self.tokens(x) + self.places[: x.shape[1]])
        return self.head(self.norm(h)).transpose(1, 2)  # type: ignore[no-any-return]


@cache
def load() -> Data:
    """The three splits: windows of 64 bytes, and the bytes that follow each of theirs."""
    windows = kept(f"bytes-{corpus.VERSION}-{WINDOWS['train']}.npz", _documents)
    return Data(**{name: _split(torch.from_numpy(windows[name])) for name in WINDOWS})


@cache
def load_slice() -> Data:
    """The same with 20 kB for training."""
    x, y = load().train
    return load()._replace(train=Split(x[:OVERFIT_WINDOWS], y[:OVERFIT_WINDOWS]))


@cache
def load_large() -> Data:
    """The three splits: windows of 128 bytes of sources, and the bytes that follow each of theirs."""
    windows = kept(f"sources-{corpus.fingerprint()}-{LARGE_WINDOWS['train']}.npz", _large)
    return Data(**{name: _split(torch.from_numpy(windows[name])) for name in LARGE_WINDOWS})


@cache
def part(severity: float) -> Split:
    """Text that is no documentation, see ``PARTS``."""
    windows = kept(f"bytes-{corpus.VERSION}-part{severity:g}.npz", lambda: {"test": _part(severity)})
    return _split(torch.from_numpy(windows["test"]))


@cache
def noise(share: float) -> Split:
    """The test text with a share of its bytes replaced by any; the more severe replaces the same ones too."""
    x, y = (tensor[:SHIFTED] for tensor in load().test)
    windows = torch.cat([x, y[:, -1:]], 1)
    generator = torch.Generator().manual_seed(0)
    hit = torch.rand(windows.shape, generator=generator) < share
    return _split(windows.where(~hit, torch.randint(256, windows.shape, generator=generator)))


def _split(windows: Tensor) -> Split:
    windows = windows.long()
    return Split(windows[:, :-1], windows[:, 1:])


def _documents() -> dict[str, Array]:
    """The splits take pieces of the text in turns from one shuffled list, validation and test first."""
    documents = corpus.topics() + [text for chapter in corpus.CHAPTERS for text in corpus.docstrings(chapter)]
    pieces = list(_pieces(documents))
    random.Random(0).shuffle(pieces)
    remaining, windows = iter(pieces), {}
    for name, count in WINDOWS.items():
        text = b""
        while len(text) <= count * CONTEXT:
            text += next(remaining).encode() + b"\n\n"
        windows[name] = _windows(text, count)
    return windows


def _pieces(documents: list[str], paragraphs: int = 10) -> Iterator[str]:
    """Documents in pieces; a paragraph that several have comes once, lest training shows what the test asks."""
    seen: set[str] = set()
    for document in documents:
        new = [text for text in dict.fromkeys(document.split("\n\n")) if text not in seen]
        seen.update(new)
        for start in range(0, len(new), paragraphs):
            yield "\n\n".join(new[start : start + paragraphs])


def _part(severity: float) -> Array:
    modules = ["encodings"] if severity == 2 else [name for names in corpus.CHAPTERS.values() for name in names]
    texts = [source.encode() for source in corpus.sources(modules)]
    random.Random(0).shuffle(texts)
    text = b"\n\n".join(texts)
    return _windows(zlib.compress(text) if severity == 3 else text, SHIFTED)


def _large() -> dict[str, Array]:
    """Validation and test have the middle of each of some files, training the files after them, whole."""
    texts = corpus.distinct(corpus.packaged())
    windows = {}
    for name in ("validation", "test"):
        pieces = [_middle(next(texts), OF_A_FILE * LARGE_CONTEXT + 1) for _ in range(LARGE_WINDOWS[name] // OF_A_FILE)]
        windows[name] = np.concatenate([_windows(piece, OF_A_FILE, LARGE_CONTEXT) for piece in pieces])
    count, text = LARGE_WINDOWS["train"], bytearray()
    while len(text) <= count * LARGE_CONTEXT:
        text += next(texts) + b"\n\n"
    windows["train"] = _windows(bytes(text), count, LARGE_CONTEXT)
    return windows


def _middle(text: bytes, length: int) -> bytes:
    start = (len(text) - length) // 2
    return text[start : start + length]


def _windows(text: bytes, count: int, context: int = CONTEXT) -> Array:
    """Pieces that each begin with the last byte of the one before, in random order."""
    starts = np.random.default_rng(0).permutation(count) * context
    return np.frombuffer(text, np.uint8)[starts[:, None] + np.arange(context + 1)]


def _task(name: str, summary: str, data: Callable[[], Data], lr: float, width: int = 64, **more: Any) -> Task:
    return Task(
        name=name,
        summary=summary,
        data=data,
        model=partial(Transformer, width),
        loss=cross_entropy,
        metric=bits,
        metric_name="bits per byte",
        higher_is_better=False,
        **{"steps": 320, "batch_size": 32, **more},
        shifts=(Shift("part", tuple(PARTS), part), Shift("noise", (0.01, 0.03, 0.1, 0.3), noise)),
        options={"lr": lr},
    )


TASKS = [
    _task("bytes", "Python's documentation byte by byte, one pass, a transformer of 137,216 parameters", load, 0.05),
    _task("bytes-overfit", "the same on 20 kB, 32 passes", load_slice, 0.002),
    _task(
        "bytes-long",
        "the same text, 4.7 passes, a transformer of 44,160 parameters",
        load,
        0.01,
        width=32,
        steps=3000,
        batch_size=16,
        curve_points=5,
    ),
    Task(
        name="bytes-large",
        summary="sources byte by byte, 1.6 of 21 MB, a transformer of 3,182,368 parameters",
        data=load_large,
        model=partial(Transformer, 288, 3, 6, LARGE_CONTEXT, FusedBlock),
        loss=cross_entropy,
        metric=bits,
        metric_name="bits per byte",
        higher_is_better=False,
        steps=1600,
        batch_size=8,
        curve_points=4,
        options={"lr": 0.002, "weight_decay": 0.1},
        sharpness=False,
        missing=corpus.missing,
    ),
]
