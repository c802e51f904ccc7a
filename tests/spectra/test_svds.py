"""Singular values against dense ones."""

from __future__ import annotations

import pytest
import torch

from curvop import DenseLinearOperator
from curvop.spectra import svds
from tests.comparing import error, random


@pytest.mark.parametrize("shape", [(30, 80), (80, 30), (40, 40), (1, 5), (5, 1)])
def test_largest(shape):
    A = random(*shape)
    k = min(4, *shape)
    triplets = svds(A, k)
    U, values, V = triplets.U, triplets.values, triplets.V
    assert triplets.status == "converged"
    assert error(values, torch.linalg.svdvals(A)[:k]) < 1e-12
    assert error(U.T @ U, torch.eye(k)) < 1e-12
    assert error(V.T @ V, torch.eye(k)) < 1e-12
    left, right = A @ V - U * values, A.T @ U - V * values
    true = (left.square().sum(0) + right.square().sum(0)).sqrt()
    assert (triplets.residuals - true).abs().max() < 1e-12


def test_multiple_values():
    U, V = (torch.linalg.qr(random(n, 20, seed=n)).Q for n in (60, 40))
    s = torch.cat([torch.full((3,), 2.0), torch.linspace(0, 1, 17)]).double()
    A = DenseLinearOperator((U * s) @ V.T)
    assert error(svds(A, 4, tol=1e-12).values, torch.tensor([2.0, 2, 2, 1])) < 1e-10


def test_small_values_lose_half_the_digits():
    U, V = (torch.linalg.qr(random(n, 20, seed=n)).Q for n in (60, 40))
    s = torch.logspace(0, -10, 20, dtype=torch.float64)
    values = svds((U * s) @ V.T, 20).values
    assert ((values - s).abs() <= 1e-14 / s + 1e-14)[s > 1e-7].all()
    assert (values[s < 1e-8] < 1e-7).all()


def test_bad_input():
    with pytest.raises(ValueError, match="1 <= k <= 3"):
        svds(random(3, 5), 4)
    with pytest.raises(TypeError, match="operator"):
        svds("A", 1)
