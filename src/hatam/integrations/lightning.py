"""Callbacks for PyTorch Lightning."""

from __future__ import annotations

from functools import partial
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import StochasticWeightAveraging

from ..optimizer import HATAM
from ..reports import Report, flat
from ..telemetry import Telemetry

AVERAGES = ("WeightAveraging", "EMAWeightAveraging")
"""Callbacks of Lightning 2.6 and later that put an average of the training's weights in the place of the weights."""


class EvaluateStraightened(Callback):
    """Moves the weights of every HATAM to the straightened point for validation, test, prediction and checkpoints.

    The weights go there when one of these begins, and back at the next batch of training. A checkpoint is whole:
    training resumes from it. ``save_weights_only=True`` with ``every_n_train_steps`` saves the weights of the training.

    Raises:
        ValueError: StochasticWeightAveraging stands before this among the callbacks, and would average other weights;
            or there is a WeightAveraging.

    Example::

        lightning.Trainer(callbacks=[EvaluateStraightened(), ModelCheckpoint(monitor="loss")])
    """

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse what averages other weights; callbacks are called in their order."""
        if any(type(callback).__name__ in AVERAGES for callback in trainer.callbacks):
            raise ValueError(
                "WeightAveraging and EvaluateStraightened both decide which weights are evaluated and saved: leave one "
                "of them out"
            )
        before = trainer.callbacks[: trainer.callbacks.index(self)]
        if any(isinstance(callback, StochasticWeightAveraging) for callback in before):
            raise ValueError(
                "StochasticWeightAveraging must come after EvaluateStraightened, to average the weights that are "
                "evaluated: callbacks=[EvaluateStraightened(), StochasticWeightAveraging(…)]"
            )

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Weights of the training."""
        for optimizer in _found(trainer):
            optimizer.train()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Weights to evaluate."""
        for optimizer in _found(trainer):
            optimizer.eval()

    # StochasticWeightAveraging reads the weights when an epoch starts.
    on_test_start = on_predict_start = on_train_epoch_start = on_train_epoch_end = on_train_end = on_validation_start

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Weights and state of a checkpoint are those of the point to evaluate."""
        self.on_validation_start(trainer, pl_module)
        checkpoint["state_dict"] = trainer.strategy.lightning_module_state_dict()
        if "optimizer_states" in checkpoint:
            checkpoint["optimizer_states"] = [trainer.strategy.optimizer_state(one) for one in trainer.optimizers]


class TelemetryCallback(Callback):
    """Hands what is observed of every HATAM to the trainer's loggers, see :class:`hatam.telemetry.Telemetry`.

    Names begin with ``hatam/``, or ``hatam/optimizer0/`` and so on where the module has several optimizers.

    Args:
        every: optimizer steps from one observation to the next.
    """

    def __init__(self, every: int = 200) -> None:
        self.every = every
        self.observed: list[Telemetry] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Begin to observe."""

        def write(prefix: str, report: Report) -> None:
            for logger in trainer.loggers:
                logger.log_metrics(flat(report, prefix), step=report["step"])

        found = _found(trainer)
        for i, optimizer in enumerate(found):
            prefix = "hatam" if len(found) == 1 else f"hatam/optimizer{i}"
            self.observed.append(Telemetry(optimizer, self.every, partial(write, prefix)))

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Remove the hooks."""
        for telemetry in self.observed:
            telemetry.detach()
        self.observed.clear()


def _found(trainer: Any) -> list[HATAM]:
    """The trainer's optimizers that have a point to evaluate."""
    return [one for one in trainer.optimizers if isinstance(one, HATAM)]
