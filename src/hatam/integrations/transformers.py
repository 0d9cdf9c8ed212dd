"""Callbacks for Hugging Face's Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from transformers import TrainerCallback

from ..batch_norm import update_bn
from ..reports import Report
from . import Observer, unwrapped


class SaveStraightened(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Makes Trainer save its model at the straightened point z.

    Trainer itself evaluates and predicts at z, but saves at z only after an evaluation. This callback covers all other
    saves, models saved or pushed at the end of training, and ``load_best_model_at_end``. Training can resume from a
    checkpoint.

    Args:
        bn_loader: loader for :func:`hatam.update_bn`, which then runs at z before an evaluation or a save; its batches,
            or their first entries, are the model's first argument. None leaves BatchNorm's statistics as they are.

    Example::

        Trainer(model, …, optimizer_cls_and_kwargs=(HATAM, {"lr": 1e-3}), callbacks=[SaveStraightened()])
    """

    def __init__(self, bn_loader: Iterable[Any] | None = None) -> None:
        self.bn_loader, self._step_of_statistics = bn_loader, -1

    def on_step_end(
        self, args: Any, state: Any, control: Any, optimizer: Any = None, model: Any = None, **kwargs: Any
    ) -> None:
        """Move the weights to z before Trainer saves or ends. Its next training step calls ``optimizer.train()``."""
        saves = control.should_save or control.should_training_stop or state.global_step >= state.max_steps
        if saves or (control.should_evaluate and self.bn_loader is not None):
            found = unwrapped(optimizer)
            found.eval()
            if self.bn_loader is not None and state.global_step != self._step_of_statistics:
                self._step_of_statistics = state.global_step  # the end of an epoch is also that of a step
                update_bn(self.bn_loader, model, found, args.device)

    on_epoch_end = on_step_end


class TelemetryCallback(Observer, TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Observes the HATAM of a Trainer, see :class:`hatam.telemetry.Telemetry`.

    Args:
        write: called with each report, such as ``hatam.telemetry.to_json_lines("telemetry.jsonl")``.
        every: optimizer steps from one observation to the next.
    """

    def __init__(self, write: Callable[[Report], None], every: int = 200) -> None:
        super().__init__(every)
        self.write = write

    def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        """Start observing."""
        self.observe(unwrapped(optimizer), self.write)
