"""A task of one's own, which every contender can train: scikit-learn's digits, 300 training images.

Needs, in a clone: pip install '.[bench]'. Run it with:

    hatam compare --task examples/own_task.py:TASK --contender adamw --contender sam
"""

import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from hatam.bench import Data, Split, Task


def data() -> Data:
    """Train, validation and test: never look at the last but to report."""
    x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    x = x.float() / 16
    return Data(Split(x[:300], y[:300]), Split(x[300:800], y[300:800]), Split(x[800:], y[800:]))


TASK = Task(
    name="digits",
    summary="scikit-learn's digits, 300 training images",
    data=data,
    model=lambda: torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10)),
    loss=lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none"),
    metric=lambda outputs, targets: 100 * (outputs.argmax(1) == targets).float(),
    metric_name="accuracy, %",
    steps=150,
    batch_size=64,
)
