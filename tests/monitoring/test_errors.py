"""What is refused, and what happens when training diverges."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from curvop import CurvatureMonitor, NonDeterministicError
from tests.monitoring.problems import training


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"k": 0}, ValueError, "Expected 1 <= k"),
        ({"k": 1.0}, TypeError, "Expected an integer k"),
        ({"every": 0}, ValueError, "Expected 1 <= every"),
        ({"maxiter": 2}, ValueError, "Expected 3 <= maxiter"),
        ({"num_probes": 1}, ValueError, "num_probes of at least 2, or 0"),
        ({"num_probes": -1}, ValueError, "Expected 0 <= num_probes"),
        ({"tol": -1.0}, ValueError, "tol"),
        ({"max_overhead": 0.0}, ValueError, "Expected a positive max_overhead"),
        ({"max_overhead": math.nan}, ValueError, "Expected a positive max_overhead"),
        ({"optimizer": "adam"}, TypeError, "Expected a torch optimizer, got str"),
        ({"preconditioned": True}, TypeError, "needs optimizer= as torch's Adam"),
        ({"matrix": lambda *_: torch.eye(3)}, TypeError, "Expected matrix to make"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else str(value),
)
def test_bad_options(options, error, message):
    with pytest.raises(error, match=message):
        CurvatureMonitor(*training().problem, **options)


def test_data_that_can_be_passed_over_once_only():
    t = training()
    with pytest.raises(ValueError, match="one-shot iterator"):
        CurvatureMonitor(t.model, t.loss_func, t.params, iter(t.data))


def test_a_loader_whose_workers_persist():
    t = training()
    dataset = TensorDataset(t.X, t.y)
    loader = DataLoader(dataset, 10, num_workers=1, persistent_workers=True)
    with pytest.raises(ValueError, match="a loader of its own"):
        CurvatureMonitor(t.model, t.loss_func, t.params, loader)


def test_dropout_that_is_left_on():
    t = training()
    model = nn.Sequential(t.model, nn.Dropout(0.5))
    params = list(model.parameters())
    with pytest.raises(NonDeterministicError):
        CurvatureMonitor(model, t.loss_func, params, t.data, eval_mode=False)


def test_a_training_that_diverges_goes_on():
    t = training(lr=0.1)
    monitor = CurvatureMonitor(*t.problem, k=2, every=1)
    with torch.no_grad():
        t.params[0].fill_(math.nan)
    record = monitor.step()
    assert record.status == "not finite"
    assert all(map(math.isnan, [record.loss, *record.values, record.trace]))
    with torch.no_grad():
        t.params[0].fill_(0.5)
    assert monitor.step().status == "converged"
