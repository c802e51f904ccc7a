"""Layers: convolution, pooling, normalisation, embedding, recurrence."""

from __future__ import annotations

from collections.abc import Callable

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


def conv(dtype: torch.dtype) -> Problem:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"),
            nn.Tanh(),
            nn.Conv2d(2, 2, 2, stride=2),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(8, 2),
        )

    model = seeded(build, dtype)
    X, y = normal(dtype, 5, 1, 4, 4), bits(dtype, 5, 2)
    return Problem(model, list(model.parameters()), bce(dtype, 2), X, y)


def conv_group_norm(dtype: torch.dtype) -> Problem:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 4, 2),
            nn.GroupNorm(2, 4),
            nn.Sigmoid(),
            nn.AvgPool2d(2),
            nn.Flatten(),
            nn.Linear(4, 3),
        )

    model = seeded(build, dtype)
    X, y = normal(dtype, 5, 1, 3, 3), classes(3, 5, ignore=True)
    return Problem(model, list(model.parameters()), cross_entropy(dtype), X, y)


def max_pool(dtype: torch.dtype) -> Problem:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 2, 2),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(8, 3),
        )

    model = seeded(build, dtype)
    X, y = normal(dtype, 5, 1, 5, 5), classes(3, 5, ignore=True)
    return Problem(model, list(model.parameters()), cross_entropy(dtype), X, y)


def _around(norm: Callable[[], nn.Module], dtype: torch.dtype) -> nn.Module:
    """A norm layer between two linear ones, whose input its output depends on."""
    return seeded(
        lambda: nn.Sequential(nn.Linear(3, 4), norm(), nn.Tanh(), nn.Linear(4, 3)),
        dtype,
    )


def layer_norm(dtype: torch.dtype) -> Problem:
    model = _around(lambda: nn.LayerNorm(4), dtype)
    X, y = normal(dtype, 5, 3), classes(3, 5, ignore=True)
    return Problem(model, list(model.parameters()), cross_entropy(dtype), X, y)


def rms_norm(dtype: torch.dtype) -> Problem:
    model = _around(lambda: nn.RMSNorm(4), dtype)
    X, y = normal(dtype, 5, 3), normal(dtype, 5, 3, seed=2)
    return Problem(model, list(model.parameters()), nn.MSELoss(), X, y)


def group_norm(dtype: torch.dtype) -> Problem:
    def build() -> nn.Module:
        linear = nn.Linear(3, 8)
        return nn.Sequential(linear, nn.GroupNorm(2, 8), nn.Tanh(), nn.Linear(8, 3))

    model = seeded(build, dtype)
    X, y = normal(dtype, 5, 3), bits(dtype, 5, 3)
    return Problem(model, list(model.parameters()), bce(dtype, 3), X, y)


def instance_norm(dtype: torch.dtype) -> Problem:
    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv1d(1, 2, 2),
            nn.InstanceNorm1d(2, affine=True),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(6, 2),
        )

    model = seeded(build, dtype)
    X, y = normal(dtype, 5, 1, 4), normal(dtype, 5, 2, seed=2)
    return Problem(model, list(model.parameters()), nn.MSELoss(), X, y)


def _batch_norm(dtype: torch.dtype) -> nn.Module:
    model = _around(lambda: nn.BatchNorm1d(4), dtype)
    model[1].running_mean.copy_(normal(dtype, 4, seed=8))
    model[1].running_var.copy_(normal(dtype, 4, seed=9).exp())
    return model


def batch_norm_eval(dtype: torch.dtype) -> Problem:
    model = _batch_norm(dtype).eval()
    X, y = normal(dtype, 5, 3), classes(3, 5, ignore=True)
    return Problem(model, list(model.parameters()), cross_entropy(dtype), X, y)


def batch_norm_train(dtype: torch.dtype) -> Problem:
    """One batch: its statistics are part of the model."""
    model = _batch_norm(dtype).train()
    X, y = normal(dtype, 5, 3), classes(3, 5, ignore=True)
    params = list(model.parameters())
    return Problem(model, params, cross_entropy(dtype), X, y, cuts=(5,))


class _Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 3, padding_idx=0)
        self.head = nn.Linear(3, 3)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.embedding(X).mean(1).tanh())


def embedding(dtype: torch.dtype) -> Problem:
    model = seeded(_Bag, dtype)
    X, y = classes(5, 5, 4), classes(3, 5, ignore=True)
    return Problem(model, list(model.parameters()), cross_entropy(dtype), X, y)


class _Recurrent(nn.Module):
    def __init__(self, cell: type[nn.Module]) -> None:
        super().__init__()
        self.cell = cell(2, 2, batch_first=True)
        self.head = nn.Linear(2, 2)

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.cell(X)[0][:, -1])


def gru(dtype: torch.dtype) -> Problem:
    model = seeded(lambda: _Recurrent(nn.GRU), dtype)
    X, y = normal(dtype, 5, 3, 2), bits(dtype, 5, 2)
    return Problem(model, list(model.parameters()), bce(dtype, 2), X, y)


def lstm(dtype: torch.dtype) -> Problem:
    model = seeded(lambda: _Recurrent(nn.LSTM), dtype)
    X, y = normal(dtype, 5, 3, 2), normal(dtype, 5, 2, seed=2)
    return Problem(model, list(model.parameters()), nn.MSELoss(), X, y)
