"""Callbacks of Lightning and of Hugging Face's Trainer.

With stand-ins that follow their protocol; and with the packages, where they are installed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from curvop import CurvatureMonitor
from curvop.monitoring import lightning_callback, trainer_callback
from tests.monitoring import trainers
from tests.monitoring.problems import training


def with_modules(monkeypatch, modules):
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_lightning_stand_in(accumulate, monkeypatch):
    with_modules(monkeypatch, trainers.lightning())
    callback = lightning_callback(
        lambda t: CurvatureMonitor(*t.problem, optimizer=t.optimizer, every=2)
    )
    logger = trainers.Logger()
    trainers.fit(training(), callback, steps=5, accumulate=accumulate, logger=logger)
    assert [r.step for r in callback.monitor.history] == [0, 2, 4]
    assert list(logger.logged) == [2, 4]
    sharpness = callback.monitor.history[1].sharpness
    assert logger.logged[2]["curvature/eigenvalue_1"] == sharpness


def test_transformers_stand_in(monkeypatch):
    with_modules(monkeypatch, trainers.transformers())
    t = training()

    def make(model, optimizer):
        assert model is t.model
        return CurvatureMonitor(*t.problem, optimizer=optimizer, every=2)

    callback = trainer_callback(make)
    trainers.train(t, callback, steps=5)
    assert [r.step for r in callback.monitor.history] == [0, 2, 4]


def test_says_what_to_install(monkeypatch):
    with_modules(monkeypatch, {"lightning.pytorch": None, "transformers": None})
    with pytest.raises(ImportError, match=r'pip install "curvop\[lightning\]"'):
        lightning_callback(None)
    with pytest.raises(ImportError, match=r'pip install "curvop\[transformers\]"'):
        trainer_callback(None)


@pytest.mark.filterwarnings("ignore")  # of these packages
def test_lightning(tmp_path):
    pl = pytest.importorskip("lightning.pytorch")

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 3))

        def training_step(self, batch, _):
            X, y = batch
            return nn.functional.cross_entropy(self.net(X), y)

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = TensorDataset(torch.randn(32, 4), torch.randint(0, 3, (32,)))
    loader = DataLoader(data, 8)

    def make(module):
        params = list(module.net.parameters())
        return CurvatureMonitor(
            module.net,
            nn.CrossEntropyLoss(),
            params,
            loader,
            optimizer=module.optimizers().optimizer,
            every=4,
        )

    def fit(callbacks, accumulate):
        module = Module()
        pl.seed_everything(1, verbose=False)
        trainer = pl.Trainer(
            max_epochs=3,
            accelerator="cpu",
            accumulate_grad_batches=accumulate,
            callbacks=callbacks,
            default_root_dir=tmp_path,
            logger=pl.loggers.CSVLogger(tmp_path),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )
        trainer.fit(module, loader)
        return module.state_dict(), trainer

    for accumulate, steps in [(1, [0, 4, 8, 12]), (2, [0, 4])]:
        callback = lightning_callback(make)
        monitored, trainer = fit([callback], accumulate)
        assert [r.step for r in callback.monitor.history] == steps
        assert callback.monitor.history[0].threshold == pytest.approx(20)
        logged = Path(trainer.logger.log_dir, "metrics.csv").read_text()
        assert "curvature/eigenvalue_1" in logged
        assert str(callback.monitor.history[-1].sharpness) in logged
        plain, _ = fit([], accumulate)
        assert all(torch.equal(plain[k], monitored[k]) for k in plain)


@pytest.mark.filterwarnings("ignore")  # of these packages
def test_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")  # the Trainer needs it

    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 3))

        def forward(self, X, labels=None):
            logits = self.net(X)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    draw = torch.Generator().manual_seed(0)
    X, y = torch.randn(32, 4, generator=draw), torch.arange(32) % 3
    examples = [{"X": x, "labels": label} for x, label in zip(X, y, strict=True)]

    def make(model, optimizer):
        params = list(model.net.parameters())
        return CurvatureMonitor(
            model.net, nn.CrossEntropyLoss(), params, [(X, y)], optimizer=optimizer, every=4
        )

    def fit(callbacks):
        model = Classifier()
        arguments = transformers.TrainingArguments(
            str(tmp_path),
            num_train_epochs=3,
            per_device_train_batch_size=8,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            seed=3,
        )
        transformers.Trainer(
            model, arguments, train_dataset=examples, callbacks=callbacks
        ).train()
        return model.state_dict()

    callback = trainer_callback(make)
    monitored, plain = fit([callback]), fit([])
    assert [r.step for r in callback.monitor.history] == [0, 4, 8, 12]
    assert callback.monitor.history[0].learning_rate is not None
    assert all(torch.equal(plain[k], monitored[k]) for k in plain)
