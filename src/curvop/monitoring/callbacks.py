"""The monitor as a callback of Lightning, and of Hugging Face's Trainer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from curvop.monitoring.monitor import CurvatureMonitor


def lightning_callback(make: Callable[[Any], CurvatureMonitor]) -> Any:
    """A Lightning callback that measures while the module is fitted.

    What is measured also goes to the trainer's logger.

    Args:
        make: Builds the monitor from the ``LightningModule``, when it is on its device;
            ``module.optimizers()`` has its optimizers.

    Returns:
        A ``lightning.pytorch.Callback``; its ``monitor`` is there once training starts.

    Raises:
        ImportError: If Lightning is missing.
    """
    try:
        from lightning.pytorch import (  # type: ignore[import-not-found, unused-ignore]
            Callback,
        )
    except ImportError as error:
        raise ImportError(
            'lightning_callback needs Lightning: pip install "curvop[lightning]".'
        ) from error

    class CurvatureCallback(Callback):  # type: ignore[misc, unused-ignore]
        monitor: CurvatureMonitor

        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            self.monitor = make(pl_module)
            self._step = trainer.global_step

        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == self._step:
                return  # gradients are being accumulated
            self._step = trainer.global_step
            record = self.monitor.step(self._step)
            if record is not None and trainer.logger is not None:
                trainer.logger.log_metrics(
                    {f"curvature/{k}": v for k, v in record.scalars().items()},
                    step=self._step,
                )

    return CurvatureCallback()


def trainer_callback(make: Callable[[Any, Any], CurvatureMonitor]) -> Any:
    """A callback of Hugging Face's ``Trainer`` that measures while it trains.

    Args:
        make: Builds the monitor from model and optimizer, when training begins.

    Returns:
        A ``transformers.TrainerCallback``; its ``monitor`` is there once training begins.

    Raises:
        ImportError: If transformers is missing.
    """
    try:
        from transformers import (  # type: ignore[import-not-found, unused-ignore]
            TrainerCallback,
        )
    except ImportError as error:
        raise ImportError(
            'trainer_callback needs transformers: pip install "curvop[transformers]".'
        ) from error

    class CurvatureCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
        monitor: CurvatureMonitor

        def on_train_begin(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            self.monitor = make(kw["model"], kw["optimizer"])

        def on_step_end(self, args: Any, state: Any, control: Any, **kw: Any) -> None:
            self.monitor.step(state.global_step)

    return CurvatureCallback()
