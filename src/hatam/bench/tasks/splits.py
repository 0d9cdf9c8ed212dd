"""Making the fixed splits of a task: samples divided, labels made wrong, arrays kept on disk."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from . import Data, Split

Array: TypeAlias = "np.ndarray[Any, Any]"


def divided(x: Tensor, y: Tensor, sizes: tuple[int, int, int]) -> Data:
    """Samples divided at random, the same way every time, with the classes in the proportions of the whole.

    Args:
        x: inputs, shape ``(n, …)``.
        y: targets, shape ``(n,)``.
        sizes: samples for training, validation and test, together at most n; 0 leaves a split empty.
    """
    from sklearn.model_selection import train_test_split  # slow to import

    train, validation, test = sizes
    rest, parts = np.arange(len(y)), []
    for size in (test, validation):
        labels = y.numpy()[rest]
        rest, part = (
            train_test_split(rest, test_size=size, random_state=0, stratify=labels) if size else (rest, rest[:0])
        )
        parts.append(part)
    if len(rest) > train:
        rest, _ = train_test_split(rest, train_size=train, random_state=0, stratify=y.numpy()[rest])
    return Data(*(Split(x[part], y[part]) for part in (rest, *reversed(parts))))


def noisy_labels(data: Data, classes: int, share: float = 0.2) -> Data:
    """The same data with a share of the training labels replaced, uniformly, by another class.

    Args:
        data: whose validation and test splits stay as they are.
        classes: their number.
        share: in [0, 1], of the training labels; the same ones every time.

    Example:
        >>> y = torch.arange(10) % 5
        >>> clean = Data(*(Split(torch.zeros(10, 1), y) for _ in range(3)))
        >>> int((noisy_labels(clean, classes=5).train.y != y).sum())
        2
    """
    generator = torch.Generator().manual_seed(0)
    y = data.train.y.clone()
    wrong = torch.randperm(len(y), generator=generator)[: round(share * len(y))]
    y[wrong] = (y[wrong] + torch.randint(1, classes, (len(wrong),), generator=generator)) % classes
    return data._replace(train=Split(data.train.x, y))


def digest(data: Data) -> str:
    """A digest of all that the splits hold, by which a record tells on which data it was made.

    Example:
        >>> data = Data(*(Split(torch.zeros(2, 1), torch.zeros(2)) for _ in range(3)))
        >>> digest(data) == digest(data._replace(test=Split(torch.zeros(2, 1), torch.ones(2))))
        False
    """
    found = hashlib.sha256()
    for tensor in (tensor for split in data for tensor in split):
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


def kept(name: str, make: Callable[[], dict[str, Array]]) -> dict[str, Array]:
    """Arrays from the file ``name`` in the user's cache, made and written there if it does not exist.

    The file is written whole or not at all: several processes may make it at once.
    """
    import platformdirs  # not where there is torch alone

    path = Path(platformdirs.user_cache_dir("hatam")) / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays = make()
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".npz")
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, path)
    with np.load(path) as file:
        return dict(file)
