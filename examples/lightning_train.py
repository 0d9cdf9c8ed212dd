"""HATAM in PyTorch Lightning: bfloat16, gradient clipping, validation at the straightened point.

Needs, in a clone: pip install . lightning scikit-learn. Run it with: python examples/lightning_train.py
"""

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hatam import HATAM
from hatam.integrations.lightning import EvaluateStraightened


class Digits(lightning.LightningModule):
    """A classifier whose optimizer is HATAM."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def configure_optimizers(self):
        optimizer = HATAM(self.named_parameters(), lr=3e-3, weight_decay=0.1)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, batch, index):
        return F.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch, index):
        self.log("accuracy", (self.model(batch[0]).argmax(1) == batch[1]).float().mean())


def main() -> None:
    lightning.seed_everything(0, verbose=False)
    x, y = (torch.as_tensor(a) for a in load_digits(return_X_y=True))
    data = TensorDataset(x.float() / 16, y)
    train, validation = (
        torch.utils.data.Subset(data, range(1200)),
        torch.utils.data.Subset(data, range(1200, len(data))),
    )
    trainer = lightning.Trainer(
        max_epochs=10,
        precision="bf16-mixed",
        gradient_clip_val=1.0,
        accelerator="auto",
        callbacks=[EvaluateStraightened()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Digits(), DataLoader(train, batch_size=32, shuffle=True), DataLoader(validation, batch_size=256))
    print(f"accuracy: {float(trainer.callback_metrics['accuracy']):.3f}")


if __name__ == "__main__":
    main()
