"""Arguments that cannot be, and what the message says."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from curvop.inspection import preflight
from tests.inspection import models

MODEL = models.mlp()
GOOD: dict[str, Any] = {
    "model_func": MODEL,
    "loss_func": nn.MSELoss(),
    "params": list(MODEL.parameters()),
    "data": models.data(),
}


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        ({"model_func": 3}, TypeError, "Expected a module or a callable as model, got int"),
        ({"loss_func": "mse"}, TypeError, "Expected a loss: .* got str"),
        ({"params": []}, ValueError, "Expected at least one parameter"),
        ({"params": MODEL[0].weight}, TypeError, "Expected a list or dict of parameters"),
        ({"params": [torch.ones(2)]}, ValueError, "does not belong to the module"),
        ({"params": [1.0]}, TypeError, "Expected tensors as parameters"),
        ({"data": []}, ValueError, "at least one batch"),
        ({"data": iter([])}, ValueError, "at least one batch"),
        ({"data": 3}, TypeError, "Expected data as an iterable"),
        ({"data": torch.ones(3)}, TypeError, "got a tensor"),
        ({"data": [torch.ones(3)]}, TypeError, "pairs"),
        ({"num_data": 0}, ValueError, "positive num_data"),
        ({"sample_size": 0}, ValueError, "sample_size of at least 1, got 0"),
        ({"sample_size": 1.5}, TypeError, "sample_size as an integer, got float"),
        ({"sample_size": True}, TypeError, "sample_size as an integer, got bool"),
        ({"max_seconds": 0}, ValueError, "positive, finite max_seconds, got 0"),
        ({"max_seconds": float("inf")}, ValueError, "positive, finite max_seconds"),
        ({"max_seconds": "10"}, TypeError, "max_seconds as a number, got str"),
        ({"reduction": "median"}, ValueError, "Expected reduction 'mean' or 'sum'"),
        ({"reduction": "sum"}, ValueError, "contradicts the loss"),
    ],
)
def test_bad_input(bad: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {**GOOD, **bad}
    options = {k: v for k, v in arguments.items() if k not in GOOD}
    with pytest.raises(error, match=message):
        preflight(*(arguments[k] for k in GOOD), **options)
