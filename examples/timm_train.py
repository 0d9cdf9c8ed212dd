"""HATAM by name in timm: imported once, then create_optimizer_v2(model, opt="hatam") makes its parameter groups.

Needs, in a clone: pip install . timm scikit-learn. Run it with: python examples/timm_train.py
"""

import timm
import torch
from sklearn.datasets import load_digits
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import accuracy, dispatch_clip_grad
from torch.nn import functional as F

import hatam.integrations.timm  # noqa: F401, registers the name
from hatam import follow

STEPS = 100


def main() -> None:
    torch.manual_seed(0)
    x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    x = x.float().view(-1, 1, 8, 8) / 16
    model = timm.create_model("test_resnet", in_chans=1, num_classes=10)
    optimizer = create_optimizer_v2(model, opt="hatam", lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    print(f"without weight decay, by timm: {len(optimizer.param_groups[0]['params'])} tensors")
    follow(model, optimizer)
    schedule = CosineLRScheduler(optimizer, t_initial=STEPS, warmup_t=5, warmup_lr_init=1e-4, t_in_epochs=False)
    for step in range(STEPS):
        batch = torch.randint(1200, (64,))
        optimizer.zero_grad()
        F.cross_entropy(model(x[batch]), y[batch], label_smoothing=0.1).backward()
        dispatch_clip_grad(model.parameters(), value=1.0, mode="norm")
        optimizer.step()
        schedule.step_update(step + 1)
    model.eval()
    with torch.no_grad():
        (found,) = accuracy(model(x[1200:]), y[1200:])
    print(f"accuracy: {found.item() / 100:.3f}")


if __name__ == "__main__":
    main()
