"""An outside client that needs only ``.shape`` and ``@``."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from curvop import (
    DiagonalLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
    JacobianLinearOperator,
    LowRankLinearOperator,
)
from curvop.spectra import eigsh
from tests.comparing import error, random

algorithms = pytest.importorskip("skerch.algorithms")


@pytest.fixture(scope="module")
def problem():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    X, y = random(12, 6), torch.arange(12) % 3
    return (
        model,
        nn.CrossEntropyLoss(),
        list(model.parameters()),
        [(X[:8], y[:8]), (X[8:], y[8:])],
    )


def test_sketched_eigendecomposition(problem):
    """The rank of the GGN is at most 12 examples times 2 free logits."""
    G = GGNLinearOperator(*problem)
    values, vectors = algorithms.seigh(G, "cpu", torch.float64, 40)[:2]
    order = values.abs().argsort(descending=True)[:5]
    ours = eigsh(G, 5)
    assert error(values[order].sort().values, ours.values) < 1e-8
    V = vectors[:, order]
    assert error(G @ V, V * values[order]) < 1e-6


def test_sketched_singular_values(problem):
    model, _, params, data = problem
    J = JacobianLinearOperator(model, params, data)
    _, values, _ = algorithms.ssvd(J, "cpu", torch.float64, 36)
    truth = torch.linalg.svdvals(J.to_dense())
    assert error(values[:10], truth[:10]) < 1e-8


def test_sketched_trace(problem):
    H = HessianLinearOperator(*problem)
    estimates = [
        algorithms.hutch(H, "cpu", torch.float64, 200, seed=seed, return_diag=False)["tr"]
        for seed in range(5)
    ]
    dense = H.to_dense()
    spread = (2 * (dense.square().sum() - dense.diag().square().sum()) / 200) ** 0.5
    mean = torch.stack([torch.as_tensor(e) for e in estimates]).mean()
    assert abs(float(mean - dense.trace())) < 4 * float(spread) / 5**0.5


@pytest.mark.parametrize("symmetric", [False, True])
def test_structured_operators(symmetric):
    U = random(60, 4)
    A = LowRankLinearOperator(U, None if symmetric else random(50, 4, seed=1))
    _, values, _ = algorithms.ssvd(A, "cpu", torch.float64, 10)
    assert error(values[:4], torch.linalg.svdvals(A.to_dense())[:4]) < 1e-10
    D = DiagonalLinearOperator(torch.arange(1.0, 9.0).double())
    norms = algorithms.snorm(D, "cpu", torch.float64, num_meas=8)[0]
    assert abs(float(norms["op"]) - 8) < 1e-8
