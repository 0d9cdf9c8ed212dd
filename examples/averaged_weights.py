"""HATAM with torch's weight averaging (EMA; SWA is the same with another average), at the straightened points.

Needs, in a clone: pip install . scikit-learn. Run it with: python examples/averaged_weights.py
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from hatam import HATAM

STEPS = 400


def main() -> None:
    torch.manual_seed(0)
    x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    x = x.float() / 16
    model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = HATAM(model.named_parameters(), lr=3e-3, weight_decay=0.1)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for step in range(STEPS):
        batch = torch.randint(1200, (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        if step % 10 == 9:  # straightened() copies the parameters, so not at every step
            with optimizer.straightened():
                averaged.update_parameters(model)
    # Running statistics are not averaged: those of the average are gathered anew.
    torch.optim.swa_utils.update_bn(x[:1200].split(64), averaged)
    averaged.eval()
    with torch.no_grad():
        accuracy = float((averaged(x[1200:]).argmax(1) == y[1200:]).float().mean())
    print(f"accuracy: {accuracy:.3f}")


if __name__ == "__main__":
    main()
