"""HATAM with accelerate: mixed precision, gradient accumulation and clipping, a checkpoint in mid-training.

Needs, in a clone: pip install . accelerate scikit-learn. Run it with: python examples/accelerate_train.py,
or with: accelerate launch --num_processes 2 examples/accelerate_train.py
"""

import tempfile

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hatam import HATAM

EPOCHS = 12


def main() -> None:
    torch.manual_seed(0)
    accelerator = Accelerator(mixed_precision="bf16", gradient_accumulation_steps=2)
    x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    x = x.float() / 16
    loader = DataLoader(TensorDataset(x[:1200], y[:1200]), batch_size=32, shuffle=True)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = HATAM(model.named_parameters(), lr=3e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    # The schedule stays outside: prepare() would step it once for every process.
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)

    def accuracy() -> float:
        with optimizer.optimizer.straightened(), torch.no_grad():  # prepare() wraps the optimizer
            right = model(x[1200:].to(accelerator.device)).argmax(1) == y[1200:].to(accelerator.device)
        return float(right.float().mean())

    with tempfile.TemporaryDirectory() as own:
        (folder,) = broadcast_object_list([own])  # that of the first process
        for epoch in range(EPOCHS):
            for inputs, targets in loader:
                with accelerator.accumulate(model):
                    accelerator.backward(F.cross_entropy(model(inputs), targets))
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    optimizer.zero_grad()
            schedule.step()
            if epoch == EPOCHS // 2:  # outside of straightened(): this is for going on
                accelerator.save_state(folder)
                accelerator.wait_for_everyone()
                accelerator.load_state(folder)
    print(f"accuracy: {accuracy():.3f}")


if __name__ == "__main__":
    main()
