"""Minimal residuals: indefinite matrices, shifts, optimality, statuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curvop import assume_psd, assume_symmetric, cg, minres
from tests.comparing import error, random
from tests.solvers.matrices import (
    Watched,
    eye,
    indefinite,
    positive,
    relative_residual,
    with_spectrum,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    N=st.integers(1, 12),
    K=st.integers(1, 3),
    digits=st.floats(0, 3),
    scale=st.floats(-200, 200),
    shift=st.floats(-2, 2),
)
def test_solves(seed, N, K, digits, scale, shift):
    signs = random(N, seed=seed + 2).sign()
    values = 10 ** (-digits * random(N, seed=seed).sigmoid()) * signs
    A = with_spectrum(values + shift, seed)
    b = random(N, K, seed=seed + 1)
    solution = minres(A, b * 10.0**scale, shift=shift, rtol=1e-9)
    x = solution.x / 10.0**scale
    A = A - shift * eye(N)
    assert solution.status == "converged"
    assert relative_residual(A, x, b) <= 1.01e-9
    assert error(x, torch.linalg.solve(A, b)) <= 1e-5  # rtol times the condition, 10 N


@pytest.mark.parametrize(("N", "smallest"), [(300, 1e-2), (1000, 1e-1)])
def test_sixty_negative_eigenvalues(N, smallest):
    A, b = indefinite(N, 60, smallest), random(N)
    solution = minres(A, b)
    assert solution.status == "converged"
    assert relative_residual(A, solution.x, b) <= 1.01e-6
    assert error(solution.x, torch.linalg.solve(A, b)) <= 1e-6 * 10 / smallest


def test_condition_of_a_hundred_million():
    values = torch.logspace(0, -8, 100, dtype=torch.float64)
    values[::5] *= -1
    A = with_spectrum(values)
    b = A @ random(100)
    solution = minres(A, b)
    assert solution.status == "converged"
    assert relative_residual(A, solution.x, b) <= 1.01e-6


def test_single_precision():
    A, b = indefinite(300, 60, 0.5).float(), random(300).float()
    solution = minres(A, b, rtol=1e-5)
    assert solution.status == "converged"
    assert solution.x.dtype == torch.float32
    assert relative_residual(A, solution.x, b) <= 1.2e-5


def test_iterates_have_the_smallest_residual_of_their_krylov_space():
    A, b = indefinite(40, 15), random(40)
    space = [b]
    for k in range(1, 7):
        V = torch.linalg.qr(torch.stack(space, 1))[0]
        truth = V @ torch.linalg.lstsq(A @ V, b[:, None]).solution[:, 0]
        solution = minres(A, b, maxiter=k)
        assert solution.status == "maxiter"
        assert error(solution.x, truth) <= 1e-9
        space.append(A @ space[-1])


def test_residuals_decrease_and_are_true():
    A = Watched(indefinite(200), psd=False)
    b = random(200)
    solution = minres(A, b)
    assert bool((solution.history.diff() <= 1e-12 * float(b.norm())).all())
    assert float(solution.residual_norm) == pytest.approx(
        float((b - A.matrix @ solution.x).norm()), rel=1e-6
    )
    assert len(solution.history) == solution.iterations + 1
    assert A.products <= solution.iterations + 2


def test_preconditioner():
    A, B = indefinite(200, 60, 1e-2), random(200, 3)
    values, Q = torch.linalg.eigh(A)
    rough = values.abs() * (1 + 0.5 * torch.linspace(-1, 1, 200))
    M = (Q / rough) @ Q.T
    solution = minres(A, B, M=assume_psd((M + M.T) / 2), rtol=1e-9)
    assert solution.status == "converged"
    assert relative_residual(A, solution.x, B) <= 1.01e-9
    assert solution.iterations <= 60
    assert minres(A, B, rtol=1e-9).iterations > 5 * solution.iterations


def test_columns_equal_single_ones():
    A, B = indefinite(100), random(100, 4)
    B[:, 2] = 0
    together = minres(A, B, rtol=1e-10, x0=random(100, 4, seed=1))
    assert together.statuses == ("converged",) * 4
    for k in range(4):
        assert error(together.x[:, k], minres(A, B[:, k], rtol=1e-10).x) <= 1e-6
    assert float(together.x[:, 2].abs().max()) == 0


def test_agrees_with_cg_where_both_apply():
    A, b = positive(60, 1e2), random(60)
    x = minres(A, b, rtol=1e-11).x
    assert error(x, cg(assume_psd(A), b, rtol=1e-11).x) <= 1e-8


def test_negative_shift_is_damping():
    A, b = indefinite(50, 10), random(50)
    damped = A + 0.7 * eye(50)
    solution = minres(A, b, shift=-0.7, rtol=1e-10)
    assert error(solution.x, torch.linalg.solve(damped, b)) <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("zeros", [1, 10])
def test_singular_and_out_of_range_gives_the_smallest_residual(zeros, dtype):
    values = torch.logspace(0, -2, 100, dtype=torch.float64)
    values[::3] *= -1
    values[20 : 20 + zeros] = 0
    Q = torch.linalg.qr(random(100, 100, seed=1))[0]
    A, b = with_spectrum(values).to(dtype), random(100).to(dtype)
    solution = minres(A, b)
    assert solution.status in ("stagnated", "singular")
    least = float((Q[:, 20 : 20 + zeros].T @ b.double()).norm())
    residual = (b.double() - A.double() @ solution.x.double()).norm()
    assert float(residual) <= 1.03 * least
    assert float(solution.residual_norm) == pytest.approx(float(residual), rel=1e-2)


def test_singular_and_in_range_converges():
    values = torch.linspace(-1, 1, 51, dtype=torch.float64)  # one is zero
    A = with_spectrum(values)
    b = A @ random(51)
    assert minres(A, b).status == "converged"


def test_zero_matrix():
    solution = minres(torch.zeros(2, 2), torch.ones(2))
    assert solution.status == "singular"
    assert float(solution.residual_norm) == pytest.approx(2**0.5)


def test_a_tolerance_out_of_reach_stagnates():
    A, b = indefinite(100), random(100)
    solution = minres(A, b, rtol=0.0)
    assert solution.status == "stagnated"
    direct = relative_residual(A, torch.linalg.solve(A, b), b)
    assert relative_residual(A, solution.x, b) <= 100 * direct


def test_operators_and_blocks():
    A = assume_symmetric(indefinite(8, 3))
    b = [random(8)]
    x = minres(A, b, rtol=1e-12).x
    assert type(x) is list
    assert error(A @ x[0], b[0]) <= 1e-9
