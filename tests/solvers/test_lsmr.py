"""Least squares: any shape and rank, damping, what converged means."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curvop import DenseLinearOperator, as_operator, assume_psd, cg, lsmr
from tests.comparing import error, random
from tests.solvers.matrices import Watched, eye, indefinite, interrupted, positive


def with_singular_values(M, N, values, seed=0):
    r = len(values)
    U = torch.linalg.qr(random(M, r, seed=seed))[0]
    V = torch.linalg.qr(random(N, r, seed=seed + 1))[0]
    return (U * values) @ V.T


def regularised(A, b, damp):
    """Dense, through the singular value decomposition."""
    U, s, Vh = torch.linalg.svd(A, full_matrices=False)
    filters = torch.where(s > 1e-10 * s.max(), s / (s**2 + damp**2), 0.0)
    return Vh.T @ (filters[:, None] * (U.T @ b.reshape(len(b), -1))).reshape(
        -1, *b.shape[1:]
    )


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    M=st.integers(1, 12),
    N=st.integers(1, 12),
    K=st.integers(1, 3),
    deficit=st.integers(0, 3),
    damp=st.sampled_from([0.0, 0.1, 1.0]),
    scale=st.floats(-150, 150),
)
def test_solves(seed, M, N, K, deficit, damp, scale):
    r = max(1, min(M, N) - deficit)
    A = with_singular_values(M, N, torch.linspace(1, 3, r, dtype=torch.float64), seed)
    b = random(M, K, seed=seed + 2)
    solution = lsmr(A, b * 10.0**scale, damp=damp, rtol=1e-11)
    assert solution.status == "converged"
    x = solution.x / 10.0**scale
    assert error(x, regularised(A, b, damp)) <= 1e-8
    residual_norm = torch.linalg.vector_norm(b - A @ x, dim=0)
    gap = solution.residual_norm / 10.0**scale - residual_norm
    assert float(gap.abs().max()) <= 1e-10 * float(b.norm())


@pytest.mark.parametrize("shape", [(300, 200), (200, 300)])
@pytest.mark.parametrize("damp", [0.0, 1e-2])
def test_tall_and_wide(shape, damp):
    values = torch.logspace(0, -2, 200, dtype=torch.float64)
    A, b = with_singular_values(*shape, values), random(shape[0])
    solution = lsmr(A, b, damp=damp, rtol=1e-10)
    assert solution.status == "converged"
    assert error(solution.x, regularised(A, b, damp)) <= 1e-6
    normal_residual = A.T @ (b - A @ solution.x) - damp**2 * solution.x
    assert float(normal_residual.norm()) <= 1.01e-10 * float((A.T @ b).norm())
    assert bool((solution.history.diff() <= 1e-12 * solution.history[0]).all())


def test_agrees_with_scipy():
    scipy_linalg = pytest.importorskip("scipy.sparse.linalg")
    values = torch.logspace(0, -2, 60, dtype=torch.float64)
    A, b = with_singular_values(100, 60, values), random(100)
    theirs = scipy_linalg.lsmr(A.numpy(), b.numpy(), damp=0.1, atol=1e-13, btol=1e-13)
    assert error(lsmr(A, b, damp=0.1, rtol=1e-12).x, torch.from_numpy(theirs[0])) <= 1e-8


def test_single_precision():
    values = torch.linspace(1, 10, 50, dtype=torch.float64)
    A, b = with_singular_values(80, 50, values).float(), random(80).float()
    solution = lsmr(A, b, rtol=1e-5)
    assert solution.status == "converged"
    assert solution.x.dtype == torch.float32
    assert error(solution.x, regularised(A.double(), b.double(), 0.0)) <= 1e-3


def test_columns_equal_single_ones():
    values = torch.logspace(0, -1, 30, dtype=torch.float64)
    A, B = with_singular_values(40, 30, values), random(40, 4)
    B[:, 1] = 0
    together = lsmr(A, B, rtol=1e-11)
    assert together.statuses == ("converged",) * 4
    for k in range(4):
        assert error(together.x[:, k], lsmr(A, B[:, k], rtol=1e-11).x) <= 1e-9


def test_a_right_hand_side_orthogonal_to_the_range():
    A = with_singular_values(60, 20, torch.linspace(1, 2, 20, dtype=torch.float64))
    U = torch.linalg.svd(A, full_matrices=False)[0]
    b = random(60)
    b = b - U @ (U.T @ b)
    solution = lsmr(A, b)  # Aᵀ b is rounding, and x may be
    assert solution.status == "converged"
    assert float(solution.x.norm()) <= 1e-12
    assert float(solution.residual_norm) == pytest.approx(float(b.norm()))


def test_as_precise_as_rounding_lets_it_be_has_converged():
    A = with_singular_values(60, 20, torch.logspace(0, -2, 20, dtype=torch.float64))
    b = random(60)
    solution = lsmr(A, b, rtol=0.0)
    assert solution.status == "converged"
    assert error(solution.x, regularised(A, b, 0.0)) <= 1e-11


def test_starts_from_x0():
    A = with_singular_values(60, 20, torch.logspace(0, -2, 20, dtype=torch.float64))
    b = random(60)
    x = regularised(A, b, 0.1)
    near = lsmr(A, b, damp=0.1, x0=x + 1e-3 * random(20), rtol=1e-10)
    assert near.status == "converged"
    assert error(near.x, x) <= 1e-8
    assert near.iterations <= lsmr(A, b, damp=0.1, rtol=1e-10).iterations


def test_square_and_indefinite():
    A, b = indefinite(60, 20, 0.1), random(60)
    assert error(lsmr(A, b, rtol=1e-11).x, torch.linalg.solve(A, b)) <= 1e-6


def test_is_the_ridge_solution_of_cg():
    A = with_singular_values(50, 30, torch.logspace(0, -2, 30, dtype=torch.float64))
    b = random(50)
    normal = assume_psd(A.T @ A + 0.01 * eye(30))
    assert error(lsmr(A, b, damp=0.1, rtol=1e-12).x, cg(normal, A.T @ b, rtol=1e-12).x) <= (
        1e-9
    )


def test_blocks():
    matrix = random(5, 8)
    A = DenseLinearOperator(matrix, domain=[(2, 2), (), (3,)], codomain=[(2,), (1, 3)])
    b = random(5)
    x = lsmr(A, [b[:2], b[2:].reshape(1, 3)], rtol=1e-12).x
    assert [part.shape for part in x] == [(2, 2), (), (3,)]
    truth = torch.linalg.pinv(matrix) @ b
    assert error(torch.cat([part.flatten() for part in x]), truth) <= 1e-9


def test_maxiter():
    A = with_singular_values(50, 30, torch.logspace(0, -4, 30, dtype=torch.float64))
    solution = lsmr(as_operator(A), random(50), maxiter=3)
    assert (solution.status, solution.iterations) == ("maxiter", 3)
    residual = (random(50) - A @ solution.x).norm()
    assert float(solution.residual_norm) == pytest.approx(float(residual), rel=1e-10)


def test_interrupted():
    A = Watched(positive(30, 1e2), at=dict.fromkeys(range(10, 99), interrupted))
    solution = lsmr(A, random(30))
    assert (solution.status, solution.iterations) == ("interrupted", 3)
    assert bool(solution.residual_norm.isnan())  # it has no recurrence
