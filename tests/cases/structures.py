"""Forms of inputs, targets and predictions."""

from __future__ import annotations

from collections import UserDict
from typing import Any

import torch
from torch import Tensor, nn

from tests.cases.problem import (
    Problem,
    bce,
    bits,
    classes,
    cross_entropy,
    normal,
    seeded,
)


class _TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(3, 3)
        self.right = nn.Linear(2, 3, bias=False)

    def forward(self, X: Any) -> Tensor:
        return self.right(X["right"]) * self.left(X["left"]).tanh()


def dict_inputs(dtype: torch.dtype) -> Problem:
    model = seeded(_TwoInputs, dtype)
    X = {"left": normal(dtype, 5, 3), "right": normal(dtype, 5, 2, seed=4)}
    y = classes(3, 5, ignore=True)
    return Problem(model, list(model.parameters()), cross_entropy(dtype), X, y)


def user_dict_inputs(dtype: torch.dtype) -> Problem:
    model = seeded(_TwoInputs, dtype)
    X = UserDict(left=normal(dtype, 5, 3), right=normal(dtype, 5, 2, seed=4))
    params = dict(model.named_parameters())
    return Problem(model, params, bce(dtype, 3), X, bits(dtype, 5, 3))


class _Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = _TwoInputs()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, X: Any) -> Tensor:
        left, (right, shift) = X
        return self.inner({"left": left, "right": right}) * self.scale + shift


def nested_tuple_inputs(dtype: torch.dtype) -> Problem:
    model = seeded(_Nested, dtype)
    right = (normal(dtype, 5, 2, seed=4), normal(dtype, 5, 3, seed=5))
    y = normal(dtype, 5, 3, seed=2)
    X = (normal(dtype, 5, 3), right)
    return Problem(model, list(model.parameters()), nn.MSELoss(), X, y)


def _reduced(terms: Tensor, reduction: str) -> Tensor:
    return {"none": terms, "sum": terms.sum(), "mean": terms.mean()}[reduction]


def _dict_target_loss(prediction: Tensor, y: Any, reduction: str = "mean") -> Tensor:
    return _reduced(y["scale"] * (prediction - y["center"]) ** 4, reduction)


def dict_targets(dtype: torch.dtype) -> Problem:
    model = seeded(lambda: nn.Sequential(nn.Linear(3, 2), nn.Tanh()), dtype)
    y = {
        "center": normal(dtype, 5, 2, seed=2),
        "scale": normal(dtype, 5, 2, seed=3).exp(),
    }
    X = normal(dtype, 5, 3)
    return Problem(model, list(model.parameters()), _dict_target_loss, X, y)


class _TwoHeads(nn.Module):
    def __init__(self, form: type) -> None:
        super().__init__()
        self.trunk = nn.Linear(3, 3)
        self.mean = nn.Linear(3, 2, bias=False)
        self.log_scale = nn.Linear(3, 1)
        self.form = form

    def forward(self, X: Tensor) -> Any:
        h = self.trunk(X).tanh()
        mean, log_scale = self.mean(h), self.log_scale(h)
        if self.form is dict:
            return {"mean": mean, "log_scale": log_scale}
        return mean, log_scale


def _gaussian_tuple(prediction: Any, y: Tensor, reduction: str = "mean") -> Tensor:
    mean, log_scale = prediction
    return _reduced(((mean - y) * log_scale.exp()) ** 2 - log_scale, reduction)


def tuple_prediction(dtype: torch.dtype) -> Problem:
    model = seeded(lambda: _TwoHeads(tuple), dtype)
    X, y = normal(dtype, 5, 3), normal(dtype, 5, 2, seed=2)
    return Problem(model, list(model.parameters()), _gaussian_tuple, X, y)


def _gaussian_dict(prediction: Any, y: Tensor) -> Tensor:
    z = (prediction["mean"] - y) * prediction["log_scale"].exp()
    return (z**2 - prediction["log_scale"]).sum(1).mean()


def dict_prediction(dtype: torch.dtype) -> Problem:
    """The loss is a callable of which nothing is known but that it is a mean."""
    model = seeded(lambda: _TwoHeads(dict), dtype)
    X, y = normal(dtype, 5, 3), normal(dtype, 5, 2, seed=2)
    params = list(model.parameters())
    options = {"reduction": "mean"}
    return Problem(model, params, _gaussian_dict, X, y, options=options)


class _OneDimensional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 1))

    def forward(self, X: Tensor) -> Tensor:
        return self.layers(X).squeeze(-1)


def one_dimensional_output(dtype: torch.dtype) -> Problem:
    model = seeded(_OneDimensional, dtype)
    X, y = normal(dtype, 5, 3), bits(dtype, 5)
    loss = nn.BCEWithLogitsLoss(pos_weight=torch.tensor(1.7, dtype=dtype))
    return Problem(model, list(model.parameters()), loss, X, y)


class _Sequence(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(2, 3)
        self.head = nn.Linear(3, 3)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.embed(X).tanh().cumsum(1)).transpose(1, 2)  # (N, C, d)


def sequence_output(dtype: torch.dtype) -> Problem:
    model = seeded(_Sequence, dtype)
    X, y = normal(dtype, 5, 4, 2), classes(3, 5, 4, ignore=True)
    params = dict(model.named_parameters())
    return Problem(model, params, cross_entropy(dtype), X, y)


def sequence_regression(dtype: torch.dtype) -> Problem:
    model = seeded(_Sequence, dtype)
    X, y = normal(dtype, 5, 2, 2), normal(dtype, 5, 3, 2, seed=2)
    return Problem(model, list(model.parameters()), nn.MSELoss(), X, y)
