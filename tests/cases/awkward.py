"""Models that do more than compute: some are beyond ``torch.func``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tests.cases.problem import Problem, bits, classes, cross_entropy, normal, seeded
from tests.cases.problem import bce as weighted_bce


class _Cube(torch.autograd.Function):
    """``x³`` in the old style, without ``setup_context``: torch.func refuses it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 3 * x**2 * g


class _Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.last = nn.Linear(3, 2)

    def forward(self, X: Tensor) -> Tensor:
        return self.last(_Cube.apply(self.first(X)))


def custom_function(dtype: torch.dtype) -> Problem:
    model = seeded(_Custom, dtype)
    X, y = normal(dtype, 5, 3), normal(dtype, 5, 2, seed=2)
    return Problem(model, list(model.parameters()), nn.MSELoss(), X, y)


class _Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.last = nn.Linear(3, 2)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("data", torch.zeros(3))

    def forward(self, X: Tensor) -> Tensor:
        self.calls += 1
        self.data.add_(X.sum(0))
        return self.last(self.first(X).tanh())


def counter(dtype: torch.dtype) -> Problem:
    model = seeded(_Counter, dtype)
    X, y = normal(dtype, 5, 3), bits(dtype, 5, 2)
    return Problem(model, list(model.parameters()), weighted_bce(dtype, 2), X, y)


class _Average(nn.Module):
    """Writes a statistic of its activations, which depend on the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.last = nn.Linear(3, 2)
        self.register_buffer("average", torch.zeros(3))

    def forward(self, X: Tensor) -> Tensor:
        h = self.first(X).tanh()
        with torch.no_grad():
            self.average.mul_(0.9).add_(h.mean(0), alpha=0.1)
        return self.last(h)


def running_average(dtype: torch.dtype) -> Problem:
    model = seeded(_Average, dtype)
    X, y = normal(dtype, 5, 3), normal(dtype, 5, 2, seed=2)
    return Problem(model, list(model.parameters()), nn.MSELoss(), X, y)


class _Checkpointed(nn.Module):
    """Calls a part of itself again in the backward pass; batch norm writes there."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh())
        self.last = nn.Linear(4, 3)

    def forward(self, X: Tensor) -> Tensor:
        return self.last(checkpoint(self.first, X, use_reentrant=False))


def checkpointed(dtype: torch.dtype) -> Problem:
    model = seeded(_Checkpointed, dtype)
    X, y = normal(dtype, 5, 3), classes(3, 5, ignore=True)
    params = list(model.parameters())
    return Problem(model, params, cross_entropy(dtype), X, y, cuts=(5,))


def checkpointed_frozen(dtype: torch.dtype) -> Problem:
    model = seeded(_Checkpointed, dtype).eval()
    params = [model.last.weight, model.first[0].bias]
    X, y = normal(dtype, 5, 3), classes(3, 5, ignore=True)
    return Problem(model, params, cross_entropy(dtype), X, y)
