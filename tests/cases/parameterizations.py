"""Ways in which a model can hold its parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.cases.problem import Problem, bce, classes, cross_entropy, normal, seeded
from tests.cases.problem import bits as targets01


def _mlp(dtype: torch.dtype, C: int = 3) -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, C)), dtype)


def mlp(dtype: torch.dtype) -> Problem:
    model = _mlp(dtype)
    X, y = normal(dtype, 6, 3), classes(3, 6, ignore=True)
    params = list(model.parameters())
    return Problem(model, params, cross_entropy(dtype), X, y, cuts=(1, 2, 3))


def mlp_sum(dtype: torch.dtype) -> Problem:
    model = _mlp(dtype, C=2)
    params = dict(model.named_parameters())
    X, y = normal(dtype, 5, 3), normal(dtype, 5, 2, seed=2)
    return Problem(model, params, nn.MSELoss(reduction="sum"), X, y)


def regression(dtype: torch.dtype) -> Problem:
    model = _mlp(dtype, C=2)
    params = list(model.parameters())
    X, y = normal(dtype, 5, 3), normal(dtype, 5, 2, seed=2)
    return Problem(model, params, nn.MSELoss(), X, y)


def multilabel(dtype: torch.dtype) -> Problem:
    model = _mlp(dtype)
    params = list(model.parameters())
    X, y = normal(dtype, 5, 3), targets01(dtype, 5, 3)
    return Problem(model, params, bce(dtype, 3), X, y)


def functional(dtype: torch.dtype) -> Problem:
    params = {
        "first": normal(dtype, 4, 3, seed=5),
        "shift": normal(dtype, 4, seed=6),
        "second": normal(dtype, 3, 4, seed=7),
    }
    leaves = {name: p.requires_grad_() for name, p in params.items()}

    def model(p: dict[str, Tensor], X: Tensor) -> Tensor:
        return (X @ p["first"].T + p["shift"]).tanh() @ p["second"].T

    X, y = normal(dtype, 5, 3), classes(3, 5, ignore=True)
    loss = cross_entropy(dtype)
    return Problem(model, leaves, loss, X, y, forward=lambda X: model(leaves, X))


def closure(dtype: torch.dtype) -> Problem:
    W = normal(dtype, 2, 3, seed=5).requires_grad_()
    b = normal(dtype, 2, seed=6).requires_grad_()

    def model(X: Tensor) -> Tensor:
        return (X @ W.T + b).sin() * b.exp()

    X, y = normal(dtype, 5, 3), targets01(dtype, 5, 2)
    return Problem(model, [b, W], bce(dtype, 2), X, y)


def frozen(dtype: torch.dtype) -> Problem:
    model = _mlp(dtype)
    first_weight, first_bias, second_weight, second_bias = model.parameters()
    first_bias.requires_grad_(False)  # not ours, and not to be differentiated
    shuffled = [second_bias, first_weight, second_weight]
    X, y = normal(dtype, 5, 3), classes(3, 5, ignore=True)
    return Problem(model, shuffled, cross_entropy(dtype), X, y)


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(3, 3)
        self.middle = nn.Linear(3, 3, bias=False)
        self.decoder = nn.Linear(3, 3)
        self.decoder.weight = self.encoder.weight

    def forward(self, X: Tensor) -> Tensor:
        return self.decoder(self.middle(self.encoder(X).tanh()).tanh())


def tied(dtype: torch.dtype) -> Problem:
    model = seeded(_Tied, dtype)
    X, y = normal(dtype, 5, 3), classes(3, 5)
    return Problem(model, list(model.parameters()), cross_entropy(dtype), X, y)


class _Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 2)
        self.never = nn.Linear(2, 2)
        self.last = nn.Linear(2, 2)

    def forward(self, X: Tensor) -> Tensor:
        return self.last(self.first(X).tanh())


def unused(dtype: torch.dtype) -> Problem:
    model = seeded(_Unused, dtype)
    X, y = normal(dtype, 5, 3), normal(dtype, 5, 2, seed=2)
    return Problem(model, list(model.parameters()), nn.MSELoss(), X, y)


class _CalledTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2, bias=False)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.layer(self.layer(X).tanh()).tanh())


def called_twice(dtype: torch.dtype) -> Problem:
    model = seeded(_CalledTwice, dtype)
    X, y = normal(dtype, 5, 3), targets01(dtype, 5, 2)
    params = dict(model.named_parameters())
    return Problem(model, params, bce(dtype, 2), X, y)


class _Scalar(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.linear = nn.Linear(3, 2)

    def forward(self, X: Any) -> Tensor:
        return self.scale.exp() * self.linear(X).sigmoid()


def scalar_parameter(dtype: torch.dtype) -> Problem:
    model = seeded(_Scalar, dtype)
    X, y = normal(dtype, 5, 3), normal(dtype, 5, 2, seed=2)
    return Problem(model, list(model.parameters()), nn.MSELoss(), X, y)
