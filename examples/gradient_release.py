"""The step inside backward(): each parameter is updated, and its gradient freed, as soon as that gradient is whole.

Each parameter has an optimizer of its own. What HATAM measures is of one tensor, so that the numbers are those of one
optimizer: to the last bit where each parameter is a group of it, else up to rounding. Gradient accumulation, clipping
by the norm over all parameters, and a GradScaler need all gradients at once, and are not possible so.

Needs, in a clone: pip install . scikit-learn. Run it with: python examples/gradient_release.py
"""

from contextlib import ExitStack
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from hatam import HATAM

STEPS = 200


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def release(model: nn.Module, **options: Any) -> dict[nn.Parameter, HATAM]:
    """An optimizer for every parameter, which steps as the gradient comes."""
    optimizers = {p: HATAM([p], **options) for p in model.parameters()}

    def step(p: nn.Parameter) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in model.parameters():
        p.register_post_accumulate_grad_hook(step)
    return optimizers


def main() -> None:
    x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    x = x.float() / 16
    released, ordinary = network(), network()
    options: dict[str, Any] = {"lr": 3e-3, "weight_decay": 0.1}
    optimizers = release(released, **options)
    optimizer = HATAM([{"params": [p]} for p in ordinary.parameters()], **options)
    schedules = [torch.optim.lr_scheduler.CosineAnnealingLR(o, STEPS) for o in (*optimizers.values(), optimizer)]
    for step in range(STEPS):
        batch = torch.randint(1200, (64,), generator=torch.Generator().manual_seed(step))
        F.cross_entropy(released(x[batch]), y[batch]).backward()  # and step
        optimizer.zero_grad()
        F.cross_entropy(ordinary(x[batch]), y[batch]).backward()
        optimizer.step()
        for schedule in schedules:
            schedule.step()
    assert all(p.grad is None for p in released.parameters())
    same = all(map(torch.equal, released.parameters(), ordinary.parameters()))
    with torch.no_grad(), ExitStack() as straightened:
        for one in optimizers.values():
            straightened.enter_context(one.straightened())
        accuracy = float((released(x[1200:]).argmax(1) == y[1200:]).float().mean())
    print(f"the same as with one optimizer: {same}")
    print(f"accuracy: {accuracy:.3f}")


if __name__ == "__main__":
    main()
