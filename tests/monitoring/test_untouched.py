"""Training is the same, bit for bit, with the monitor and without."""

from __future__ import annotations

import random
import signal

import numpy
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from curvop import CurvatureMonitor, GGNLinearOperator
from tests.monitoring.problems import training


def network() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)
    )


def state(model, optimizer, loader):
    """All that training leaves behind."""
    return [
        *[p.detach().clone() for p in model.parameters()],
        *[p.grad.clone() for p in model.parameters()],
        *[b.clone() for b in model.buffers()],
        *[v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)],
        torch.get_rng_state(),
        loader.generator.get_state(),
        torch.tensor(numpy.random.get_state()[1].astype("int64")),
        torch.tensor(random.getstate()[1]),
        torch.tensor([m.training for m in model.modules()]),
        torch.tensor([p.requires_grad for p in model.parameters()]),
    ]


def train(make_optimizer, monitored, **options):
    """A stochastic training of four epochs; the monitor looks at the same loader."""
    draw = torch.Generator().manual_seed(0)
    X = torch.randn(24, 4, generator=draw)
    y = torch.randint(0, 3, (24,), generator=draw)
    model = network()
    model[0].eval()  # a part that the user has frozen
    order = torch.Generator().manual_seed(5)
    loader = DataLoader(TensorDataset(X, y), 8, shuffle=True, generator=order)
    torch.manual_seed(2)
    numpy.random.seed(2)
    random.seed(2)
    loss_func, params = nn.CrossEntropyLoss(), list(model.parameters())
    optimizer = make_optimizer(params)
    monitor = None
    if monitored:
        monitor = CurvatureMonitor(
            model, loss_func, params, loader, optimizer=optimizer, every=2, **options
        )
    for _ in range(4):
        for batch, target in loader:
            optimizer.zero_grad()
            loss_func(model(batch), target).backward()
            optimizer.step()
            if monitor is not None:
                monitor.step()
    if monitor is not None:
        assert len(monitor.history) == 7
    return state(model, optimizer, loader)


SGD = [torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}]
ADAM = [torch.optim.Adam, {"lr": 1e-2}]


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        (SGD, {}),
        (SGD, {"k": 3, "matrix": GGNLinearOperator}),
        (ADAM, {"preconditioned": True}),
    ],
    ids=["sgd", "ggn", "adam"],
)
def test_training_is_the_same_bit_for_bit(optimizer, options):
    kind, settings = optimizer

    def make(params):
        return kind(params, **settings)

    without, with_monitor = train(make, False), train(make, True, **options)
    assert len(without) == len(with_monitor)
    for a, b in zip(without, with_monitor, strict=True):
        assert torch.equal(a, b)


class Fails(nn.Module):
    """A layer that does something when told to."""

    action = None

    def forward(self, x):
        if Fails.action is not None:
            Fails.action()
        return x


@pytest.mark.parametrize("kind", ["error", "ctrl-c"])
def test_modes_come_back_after_a_failure(kind, monkeypatch):
    t = training()
    model = nn.Sequential(Fails(), t.model, nn.Dropout(0.5))
    monitor = CurvatureMonitor(model, t.loss_func, list(model.parameters()), t.data)
    expected = ZeroDivisionError if kind == "error" else KeyboardInterrupt

    def fail():
        if kind == "error":
            raise ZeroDivisionError
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Fails, "action", staticmethod(fail))
    with pytest.raises(expected):
        monitor.measure()
    assert all(m.training for m in model.modules())
    assert all(p.grad is None for p in model.parameters())
    assert len(monitor.history) == 1


def test_interrupt_between_products_is_not_swallowed(monkeypatch):
    """``eigsh`` answers Ctrl-C with what it has; training must nevertheless end."""
    t = training()
    model = nn.Sequential(Fails(), t.model)
    monitor = CurvatureMonitor(model, t.loss_func, list(model.parameters()), t.data)
    calls = []

    def fail():
        calls.append(1)
        if len(calls) == 12:  # some products into the eigenvalues
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Fails, "action", staticmethod(fail))
    with pytest.raises(KeyboardInterrupt):
        monitor.measure()
    assert len(calls) == 12
    assert len(monitor.history) == 1
