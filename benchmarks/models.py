"""What measurements share: two small models and their data, and HATAM in mid-schedule."""

from __future__ import annotations

from itertools import pairwise
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hatam import HATAM


def reaching(params: Any, lr: Any = 1e-3, **options: Any) -> HATAM:
    """HATAM in the second half of a schedule, where every step undoes one reach and makes another."""
    optimizer = HATAM(params, lr, travel=0.0, **options)
    for group in optimizer.param_groups:
        group["lr_peak"] = 2 * group["lr"]
    return optimizer


class Transformer(nn.Module):
    """A decoder over bytes: learned positions, pre-norm blocks, causal attention."""

    def __init__(self, width: int = 128, layers: int = 2, heads: int = 4, context: int = 64) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(256, width), nn.Embedding(context, width)
        block = nn.TransformerEncoderLayer(
            width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, 256)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.tokens(x) + self.places(torch.arange(x.shape[1], device=x.device))
        h = self.blocks(h, mask=self.mask, is_causal=True)
        return self.head(h).transpose(1, 2)  # classes second, as cross_entropy wants them


def conv_net(width: int = 32) -> nn.Module:
    """Four convolutions with BatchNorm for 32 × 32 images of 10 classes."""
    layers: list[nn.Module] = []
    channels = [3, width, 2 * width, 4 * width, 4 * width]
    for i, (before, after) in enumerate(pairwise(channels)):
        layers += [nn.Conv2d(before, after, 3, stride=1 + (i > 0), padding=1), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels[-1], 10))


def text() -> Tensor:
    """Python's own help texts as bytes."""
    return torch.tensor(list("\n".join(topics[key] for key in sorted(topics)).encode()), dtype=torch.long)


def windows(data: Tensor, n: int, context: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """``n`` pieces of text and the bytes that follow each of theirs."""
    starts = torch.randint(len(data) - context, (n, 1), generator=generator) + torch.arange(context + 1)
    pieces = data[starts]
    return pieces[:, :-1], pieces[:, 1:]


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of every sample, the mean over its places."""
    losses = F.cross_entropy(outputs, targets, reduction="none")
    return losses if losses.dim() == 1 else losses.mean(1)
