"""Comparing optimizers in a training loop of one's own: scikit-learn's digits, a small net, 300 training images.

Needs, in a clone: pip install '.[bench]'. Run it with: python examples/own_model.py
"""

import torch
from sklearn.datasets import load_digits
from torch.nn import functional as F

from hatam.bench import compare, evaluating


def train(make_optimizer, seed):
    """The training loop as it was, but for two lines: make_optimizer, and evaluating around the test."""
    x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    x = x.float() / 16
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))
    optimizer = make_optimizer(model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    for _ in range(100):
        batch = torch.randint(300, (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        schedule.step()
    with evaluating(optimizer), torch.no_grad():
        right = model(x[300:]).argmax(1) == y[300:]
    return {"accuracy, %": 100 * float(right.float().mean())}


if __name__ == "__main__":
    compare(
        train,
        contenders=["adamw", "hatam", "msam:rho=0.5", ("nadam", torch.optim.NAdam)],
        seeds=4,
        options={"lr": 0.03},  # for every contender; a list is a grid
    )
