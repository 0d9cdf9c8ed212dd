"""Telemetry inside of trainers: a callback for Hugging Face's Trainer, and one for PyTorch Lightning.

Both are made by functions, so that neither library is needed, or imported, by who uses the other.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch.optim import Optimizer

from .optimizer import HATAM
from .reports import Report, flat
from .telemetry import Telemetry


def unwrapped(optimizer: Any) -> HATAM:
    """The HATAM in what a host made of it: accelerate keeps the optimizer that it wraps in ``optimizer``.

    Raises:
        TypeError: there is none.
    """
    while not isinstance(optimizer, HATAM) and isinstance(getattr(optimizer, "optimizer", None), Optimizer):
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, HATAM):
        raise TypeError(f"telemetry needs a HATAM optimizer, and the host has a {type(optimizer).__name__}")
    return optimizer


def trainer_callback(write: Callable[[Report], None], every: int = 200) -> Any:
    """A callback for Hugging Face's Trainer that observes its HATAM optimizer.

    Args:
        write: where the reports go, such as ``hatam.telemetry.to_json_lines("telemetry.jsonl")``.
        every: optimizer steps from one to the next.

    Example::

        Trainer(model, …, optimizer_cls_and_kwargs=(HATAM, {"lr": 1e-3}), callbacks=[trainer_callback(write)])
    """
    from transformers import TrainerCallback

    class TelemetryCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
        telemetry: Telemetry | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
            self.telemetry = Telemetry(unwrapped(optimizer), every, write)

        def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if self.telemetry is not None:
                self.telemetry.detach()

    return TelemetryCallback()


def lightning_callback(every: int = 200) -> Any:
    """A callback for PyTorch Lightning that hands what it observes to the trainer's loggers.

    Names begin with ``hatam/``, or ``hatam/optimizer0/`` and so on where the module has several optimizers.

    Args:
        every: optimizer steps from one observation to the next.

    Example::

        lightning.Trainer(logger=TensorBoardLogger("logs"), callbacks=[lightning_callback(every=50)])
    """
    from lightning.pytorch import Callback

    class TelemetryCallback(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            def write(prefix: str, report: Report) -> None:
                for logger in trainer.loggers:
                    logger.log_metrics(flat(report, prefix), step=report["step"])

            self.observed = []
            for i, optimizer in enumerate(trainer.optimizers):
                prefix = "hatam" if len(trainer.optimizers) == 1 else f"hatam/optimizer{i}"
                self.observed.append(Telemetry(unwrapped(optimizer), every, partial(write, prefix)))

        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            for telemetry in self.observed:
                telemetry.detach()

    return TelemetryCallback()
