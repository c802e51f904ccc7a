"""Stand-ins for Lightning and transformers: their callback protocol, and no more.

What calls a callback when is taken from their documentation: ``Callback.on_train_start
(trainer, pl_module)`` and ``on_train_batch_end(trainer, pl_module, outputs, batch,
batch_idx)``; ``TrainerCallback.on_train_begin`` and ``on_step_end(args, state, control,
**kwargs)`` with ``model`` and ``optimizer`` among the keywords.
"""

from __future__ import annotations

from types import ModuleType, SimpleNamespace


class Callback:
    """As ``lightning.pytorch.Callback`` and ``transformers.TrainerCallback``."""

    def on_train_start(self, trainer, pl_module):
        pass

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pass

    def on_train_begin(self, args, state, control, **kwargs):
        pass

    def on_step_end(self, args, state, control, **kwargs):
        pass


def lightning() -> dict[str, ModuleType]:
    """The modules that ``from lightning.pytorch import Callback`` looks for."""
    package, inner = ModuleType("lightning"), ModuleType("lightning.pytorch")
    package.pytorch, inner.Callback = inner, Callback
    return {"lightning": package, "lightning.pytorch": inner}


def transformers() -> dict[str, ModuleType]:
    """The module that ``from transformers import TrainerCallback`` looks for."""
    package = ModuleType("transformers")
    package.TrainerCallback = Callback
    return {"transformers": package}


class Logger:
    """A logger of Lightning."""

    def __init__(self):
        self.logged = {}

    def log_metrics(self, metrics, step):
        self.logged[step] = metrics


def fit(t, callback, *, steps, accumulate, logger) -> None:
    """What Lightning's trainer does, with ``accumulate`` batches to a step."""
    trainer = SimpleNamespace(global_step=0, logger=logger)
    callback.on_train_start(trainer, t)
    for i in range(steps * accumulate):
        if i % accumulate == accumulate - 1:
            t.descend()
            trainer.global_step += 1
        callback.on_train_batch_end(trainer, t, None, None, i)


def train(t, callback, *, steps) -> None:
    """What Hugging Face's trainer does."""
    state = SimpleNamespace(global_step=0)
    passed = {"model": t.model, "optimizer": t.optimizer, "lr_scheduler": None}
    callback.on_train_begin(None, state, None, **passed)
    for _ in range(steps):
        t.descend()
        state.global_step += 1
        callback.on_step_end(None, state, None, **passed)
