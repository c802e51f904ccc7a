"""Every operator over model, loss, parameters and data, and its dense truth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvop import (
    EFDiagonalLinearOperator,
    EFLinearOperator,
    EKFACLinearOperator,
    GGNDiagonalLinearOperator,
    GGNLinearOperator,
    HessianDiagonalLinearOperator,
    HessianLinearOperator,
    JacobianLinearOperator,
    KFACLinearOperator,
    TransposedJacobianLinearOperator,
)

from . import dense

JACOBIANS = (JacobianLinearOperator, TransposedJacobianLinearOperator)
KRONECKER = (KFACLinearOperator, EKFACLinearOperator)
CURVATURES = (
    HessianLinearOperator,
    GGNLinearOperator,
    EFLinearOperator,
    HessianDiagonalLinearOperator,
    GGNDiagonalLinearOperator,
    EFDiagonalLinearOperator,
)
OF_PREDICTION = (GGNLinearOperator, GGNDiagonalLinearOperator, *KRONECKER)
of_all = pytest.mark.parametrize("cls", [*CURVATURES, *KRONECKER, *JACOBIANS])
of_losses = pytest.mark.parametrize("cls", [*CURVATURES, *KRONECKER])

N, C = 7, 3
X, LABELS = dense.normal(N, 4, seed=1), dense.integers(C, N, seed=2)
PARTS = [(0, 1), (2, 3, 4, 5), (6,)]


def network() -> nn.Sequential:
    """A perceptron, always the same."""
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, C)).double()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(dense.normal(*p.shape, seed=10 + i))
    return net


def build(cls: Any, model: Any, loss: Any, params: Any, data: Any, **options: Any) -> Any:
    """The operator; Jacobians have no loss."""
    losses = () if cls in JACOBIANS else (loss,)
    return cls(model, *losses, params, data, **options)


def truth(
    cls: Any, model: Any, loss: Any, terms: Any, params: Any, X: Any, y: Any
) -> Tensor:
    """The dense matrix on one batch, by plain double backward."""
    params = list(params)
    if cls in JACOBIANS:
        J = dense.jacobian(model, params, X)
        return J if cls is JacobianLinearOperator else J.T
    name = cls.__name__
    if "Hessian" in name:
        A = dense.hessian(model, loss, params, X, y)
    elif "GGN" in name:
        A = dense.ggn(model, loss, params, X, y)
    else:
        A = dense.empirical_fisher(model, loss, terms, params, X, y)
    return A.diag().diag() if "Diagonal" in name else A


def agree(A: Any, truth: Tensor, error: float = 1e-8) -> None:
    """Compare an operator with its dense matrix."""
    assert truth.any()
    assert dense.relative_error(A.to_dense(), truth) <= error


def differences(gradient: Any, params: Any) -> Tensor:
    """``∇²L`` by central differences of a gradient that the caller computes."""
    params, rows = list(params), []
    for p in params:
        for j in range(p.numel()):
            sides = []
            for step in (1e-5, -1e-5):
                with torch.no_grad():
                    p.view(-1)[j] += step
                sides.append(dense.flat(gradient()))
                with torch.no_grad():
                    p.view(-1)[j] -= step
            rows.append((sides[0] - sides[1]) / 2e-5)
    return torch.stack(rows)
