"""Operators with few data, and their dense matrices, for the tests of this folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from curvop import EFLinearOperator, GGNLinearOperator
from curvop.lowrank import GramFactor
from tests.curvature import dense

KINDS = {"ggn": GGNLinearOperator, "ef": EFLinearOperator}


def network(*layers: nn.Module, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Layers in sequence, with random entries that are always the same."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(*layers).double()
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64) / 2
    return model.to(dtype)


def perceptron(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """5 -> 6 -> 3."""
    return network(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3), dtype=dtype)


def images(N: int = 7, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Inputs and labels for the perceptron."""
    X = dense.normal(N, 5, seed=1).to(dtype)
    return X, dense.integers(3, N, seed=2)


def operator(
    model: nn.Module,
    loss: nn.Module,
    data: Sequence[tuple[Any, Any]],
    name: str = "ggn",
    **options: Any,
) -> Any:
    """Without the determinism check, which is not what is tested."""
    params = list(model.parameters())
    return KINDS[name](model, loss, params, data, check_deterministic=False, **options)


def factor(N: int = 7, dtype: torch.dtype = torch.float64, **options: Any) -> GramFactor:
    """The GGN of the perceptron, in two batches."""
    X, y = images(N, dtype)
    data = [(X[:2], y[:2]), (X[2:], y[2:])]
    A: GramFactor = operator(perceptron(dtype), nn.CrossEntropyLoss(), data).factor(
        **options
    )
    return A


def truth(N: int = 7) -> Tensor:
    """Its dense matrix."""
    model, loss = perceptron(), nn.CrossEntropyLoss()
    D = dense.ggn(model, loss, list(model.parameters()), *images(N))
    return (D + D.T) / 2
