"""The smallest eigenvalue, by bisection on the inertia."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.direct.chains import chain, dense, mlp, problem


@pytest.mark.parametrize("loss", ["mse", "cross-entropy"])
@pytest.mark.parametrize("n", [1, 12])
def test_hessian(n: int, loss: str) -> None:
    p = mlp(3, 4, n, loss=loss)
    eigenvalues = torch.linalg.eigvalsh(dense(p))
    got = chain(p).smallest_eigenvalue()
    assert abs(got - float(eigenvalues[0])) <= 1e-10 * float(eigenvalues.abs().max())


def test_rough() -> None:
    p = mlp(3, 4, 3)
    eigenvalues = torch.linalg.eigvalsh(dense(p))
    got = chain(p).smallest_eigenvalue(tol=1e-2)
    assert abs(got - float(eigenvalues[0])) <= 1e-2 * float(eigenvalues.abs().max())


def test_positive_definite() -> None:
    """A linear model with enough data: the smallest eigenvalue is not zero."""
    p = problem(lambda: [nn.Linear(3, 2)], 20, 3)
    eigenvalues = torch.linalg.eigvalsh(dense(p))
    assert float(eigenvalues[0]) > 1e-3
    got = chain(p).smallest_eigenvalue()
    assert abs(got - float(eigenvalues[0])) <= 1e-10 * float(eigenvalues[-1])


def test_gauss_newton_with_a_null_space() -> None:
    p = mlp(3, 4, 2)
    norm = float(torch.linalg.eigvalsh(dense(p, "ggn"))[-1])
    assert abs(chain(p, curvature="ggn").smallest_eigenvalue()) <= 1e-10 * norm


def test_zero() -> None:
    """A loss that is linear where it matters."""
    p = problem(lambda: [nn.Linear(3, 2)], 4, 3, loss=nn.L1Loss())
    assert chain(p).smallest_eigenvalue() == 0.0


@pytest.mark.parametrize("tol", [0.0, -1.0, float("nan")])
def test_bad_tolerance(tol: float) -> None:
    with pytest.raises(ValueError, match="tol"):
        chain(mlp(2, 3, 2)).smallest_eigenvalue(tol=tol)
