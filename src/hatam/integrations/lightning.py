"""Callbacks for PyTorch Lightning."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.callbacks import StochasticWeightAveraging

from ..batch_norm import update_bn
from ..optimizer import HATAM
from ..reports import Report, flat
from . import Observer

AVERAGES = ("WeightAveraging", "EMAWeightAveraging")
"""Callbacks of Lightning 2.6 and later that replace the weights by their average over training."""


class EvaluateStraightened(Callback):
    """Moves the weights of every HATAM to the straightened point z for validation, test, prediction and checkpoints.

    The weights move to z when one of these begins, and back to w at the next training batch. Training can resume from
    a checkpoint. But ``save_weights_only=True`` with ``every_n_train_steps`` saves w.

    Args:
        bn_loader: loader for :func:`hatam.update_bn`, which then runs at z before an evaluation or a checkpoint; its
            batches, or their first entries, are inputs of the module. None leaves BatchNorm's statistics as they are.

    Raises:
        ValueError: StochasticWeightAveraging is before this callback in the list, and would average other weights; or
            the list has a WeightAveraging.

    Example::

        lightning.Trainer(callbacks=[EvaluateStraightened(), ModelCheckpoint(monitor="loss")])
    """

    def __init__(self, bn_loader: Iterable[Any] | None = None) -> None:
        self.bn_loader, self._has_trained = bn_loader, False

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Refuse callbacks that would average other weights. Lightning calls callbacks in the order of their list."""
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
        """Move the weights to w."""
        self._has_trained = True
        for optimizer in _found(trainer):
            optimizer.train()

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Move the weights to z, and compute BatchNorm's statistics there once."""
        optimizers = _found(trainer)
        for optimizer in optimizers:
            optimizer.eval()
        if optimizers and self.bn_loader is not None and self._has_trained:
            self._has_trained = False
            with ExitStack() as stack:
                for optimizer in optimizers[1:]:
                    stack.enter_context(optimizer.straightened())  # a followed model does not move them then
                update_bn(self.bn_loader, pl_module, optimizers[0], pl_module.device)

    # on_train_epoch_start is among them because StochasticWeightAveraging reads the weights then.
    on_test_start = on_predict_start = on_train_epoch_start = on_train_epoch_end = on_train_end = on_validation_start

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Move the weights to z, and save weights and optimizer states from there."""
        self.on_validation_start(trainer, pl_module)
        checkpoint["state_dict"] = trainer.strategy.lightning_module_state_dict()
        if "optimizer_states" in checkpoint:
            checkpoint["optimizer_states"] = [trainer.strategy.optimizer_state(one) for one in trainer.optimizers]


class TelemetryCallback(Observer, Callback):
    """Sends the telemetry of every HATAM to the trainer's loggers, see :class:`hatam.telemetry.Telemetry`.

    Names of metrics begin with ``hatam/``, or ``hatam/optimizer0/`` and so on where the module has several optimizers.

    Args:
        every: optimizer steps from one observation to the next.
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Start observing."""

        def write(prefix: str, report: Report) -> None:
            for logger in trainer.loggers:
                logger.log_metrics(flat(report, prefix), step=report["step"])

        found = _found(trainer)
        for i, optimizer in enumerate(found):
            prefix = "hatam" if len(found) == 1 else f"hatam/optimizer{i}"
            self.observe(optimizer, partial(write, prefix))


def _found(trainer: Any) -> list[HATAM]:
    """The trainer's HATAM optimizers."""
    return [one for one in trainer.optimizers if isinstance(one, HATAM)]
