"""Conjugate gradients: laws, statuses, columns, forms."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curvop import (
    DenseLinearOperator,
    DiagonalLinearOperator,
    IdentityLinearOperator,
    assume_psd,
    cg,
)
from tests.comparing import error, random
from tests.solvers.matrices import (
    Watched,
    indefinite,
    positive,
    relative_residual,
    with_spectrum,
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    N=st.integers(1, 12),
    K=st.integers(1, 4),
    digits=st.floats(0, 4),
    scale=st.floats(-200, 200),
    shift=st.floats(0, 3),
)
def test_solves(seed, N, K, digits, scale, shift):
    values = 10 ** (-digits * random(N, seed=seed).sigmoid()) + shift
    A = with_spectrum(values, seed)
    b = random(N, K, seed=seed + 1)
    solution = cg(assume_psd(A), b * 10.0**scale, rtol=1e-9)
    x = solution.x / 10.0**scale
    assert solution.status == "converged"
    assert relative_residual(A, x, b) <= 1.01e-9
    assert error(x, torch.linalg.solve(A, b)) <= 1e-4  # rtol times the condition, 10 N


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), c=st.floats(-3, 3).filter(lambda c: abs(c) > 0.01))
def test_is_linear_to_the_tolerance(seed, c):
    A = assume_psd(positive(10, 1e2, seed))
    b, d = random(10, seed=seed), random(10, seed=seed + 1)

    def solve(y):
        return cg(A, y, rtol=1e-12).x

    assert error(solve(c * b + d), c * solve(b) + solve(d)) <= 1e-8


def test_condition_of_a_hundred_million():
    A = positive(300, 1e8)
    b = A @ random(300)  # of a solution of order one
    solution = cg(assume_psd(A), b)
    assert solution.status == "converged"
    assert relative_residual(A, solution.x, b) <= 1.01e-6


@pytest.mark.slow
def test_condition_of_a_hundred_million_with_a_generic_right_hand_side():
    A, b = positive(300, 1e8), random(300)
    solution = cg(assume_psd(A), b)  # the default maxiter is large enough for rounding
    assert solution.status == "converged"
    assert relative_residual(A, solution.x, b) <= 1.01e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precisions(dtype):
    A, b = positive(400, 30), random(400)
    solution = cg(assume_psd(A.to(dtype)), b.to(dtype), rtol=3e-6)
    assert solution.status == "converged"
    assert solution.x.dtype == dtype
    assert relative_residual(A.to(dtype), solution.x, b.to(dtype)) <= 4e-6


def test_half_precision_runs_in_single():
    A, b = positive(50, 10), random(50)
    solution = cg(assume_psd(A.bfloat16()), b.bfloat16(), rtol=2e-2)
    assert solution.status == "converged"
    assert solution.x.dtype == torch.bfloat16
    assert relative_residual(A, solution.x, b) <= 5e-2


def test_tiny_numbers_do_not_underflow():
    A, b = positive(40, 10).float(), random(40).float() * 1e-30
    solution = cg(assume_psd(A), b, rtol=1e-5)
    assert solution.status == "converged"
    assert error(solution.x, torch.linalg.solve(A, b)) <= 1e-3


@pytest.mark.parametrize(("rtol", "dtype"), [(0.0, "float64"), (1e-9, "float32")])
def test_a_tolerance_out_of_reach_stagnates_with_the_true_residual(rtol, dtype):
    dtype = getattr(torch, dtype)
    A, b = positive(200, 1e3).to(dtype), random(200).to(dtype)
    solution = cg(assume_psd(A), b, rtol=rtol)
    assert solution.status == "stagnated"
    true = relative_residual(A, solution.x, b)
    reached = float(solution.residual_norm / b.double().norm())
    assert true == pytest.approx(reached, rel=0.5)
    # as good as a direct method, up to a factor
    direct = relative_residual(A, torch.linalg.solve(A, b), b)
    assert true <= 30 * direct


def test_history_and_count():
    A = Watched(positive(100, 1e3))
    b = random(100)
    solution = cg(A, b)
    assert len(solution.history) == solution.iterations + 1
    assert float(solution.history[0]) == pytest.approx(float(b.norm()))
    assert float(solution.history[-1]) == float(solution.residual_norm)
    assert A.products == solution.iterations + 1  # one to see that it is true
    assert solution.direction is None
    assert solution.statuses == ("converged",)
    assert solution.converged


def test_maxiter_tells_the_true_residual():
    A, b = positive(100, 1e4), random(100)
    solution = cg(assume_psd(A), b, maxiter=7)
    assert (solution.status, solution.iterations) == ("maxiter", 7)
    assert not solution.converged
    residual = (b - A @ solution.x).norm()
    assert float(solution.residual_norm) == pytest.approx(float(residual), rel=1e-10)


def test_first_iterates_are_those_of_the_krylov_space():
    A, b = positive(30, 1e3), random(30)
    space = [b]
    for k in range(1, 6):
        V = torch.linalg.qr(torch.stack(space, 1))[0]
        truth = V @ torch.linalg.solve(V.T @ A @ V, V.T @ b)  # least energy norm
        assert error(cg(assume_psd(A), b, maxiter=k, rtol=1e-15).x, truth) <= 1e-9
        space.append(A @ space[-1])


# ----------------------------------------------------------------- several columns


def test_columns_equal_single_ones():
    A, B = positive(200, 1e4), random(200, 5)
    B[:, 3] = A @ torch.ones(200).double()
    together = cg(assume_psd(A), B, rtol=1e-10)
    singles = [cg(assume_psd(A), b, rtol=1e-10) for b in B.T]
    for k, alone in enumerate(singles):
        assert together.statuses[k] == alone.status == "converged"
        assert error(together.x[:, k], alone.x) <= 1e-6  # rtol times the condition
        n = 15  # before rounding grows
        assert error(together.history[:n, k], alone.history[:n]) <= 1e-8
    most = max(alone.iterations for alone in singles)
    assert abs(together.iterations - most) <= 0.05 * most
    assert together.x.shape == (200, 5)
    assert together.history.shape == (together.iterations + 1, 5)


def test_columns_share_products_and_leave_when_they_have_converged():
    values = torch.linspace(1, 50, 60, dtype=torch.float64)
    A = Watched(values.diag())
    B = random(60, 3)
    B[:, 0] = 0
    B[:, 1] = torch.eye(60, dtype=torch.float64)[4]  # an eigenvector: one iteration
    solution = cg(A, B)
    assert solution.statuses == ("converged",) * 3
    assert float(solution.x[:, 0].abs().max()) == 0
    assert A.columns[0] == 2
    assert A.columns[1] == 1  # the look at the column that has arrived
    assert set(A.columns[2:]) == {1}
    assert A.products <= solution.iterations + 2


def test_worst_column_gives_the_word():
    A = torch.diag(torch.tensor([1.0, 2.0, -3.0], dtype=torch.float64))
    B = torch.tensor([[1.0, 0], [1, 0], [0, 1]], dtype=torch.float64)
    solution = cg(assume_psd(A), B)
    assert solution.statuses == ("converged", "negative curvature")
    assert solution.status == "negative curvature"
    assert error(solution.direction, torch.tensor([[0, 0], [0, 0], [0, 1.0]])) <= 1e-12
    assert error(solution.x[:, 0], torch.tensor([1, 0.5, 0])) <= 1e-12


def test_no_columns():
    solution = cg(assume_psd(positive(5, 2)), torch.zeros(5, 0).double())
    assert solution.x.shape == (5, 0)
    assert solution.status == "converged"


# ----------------------------------------------------------------- ends of a run


@pytest.mark.parametrize("N", [80, 300])
def test_negative_curvature(N):
    A, b = indefinite(N), random(N)
    solution = cg(assume_psd(A), b)
    d = solution.direction
    assert solution.status == "negative curvature"
    assert float(d.norm()) == pytest.approx(1)
    assert float(d @ A @ d) < 0
    # the iterate is the last before: the quadratic model has decreased
    x = solution.x
    assert float(x @ A @ x / 2 - b @ x) < 0
    residual = (b - A @ x).norm()
    assert float(solution.residual_norm) == pytest.approx(float(residual), rel=1e-8)


def test_a_direction_without_curvature():
    solution = cg(assume_psd(torch.zeros(2, 2)), torch.tensor([3.0, 4.0]))
    assert solution.status == "singular"
    assert error(solution.direction, torch.tensor([0.6, 0.8])) <= 1e-6
    assert float(solution.residual_norm) == 5


@pytest.mark.parametrize("seed", range(4))
def test_a_singular_matrix_and_a_right_hand_side_out_of_its_range(seed):
    values = torch.linspace(1, 3, 50, dtype=torch.float64)
    values[:5] = 0
    A, b = with_spectrum(values, seed), random(50, seed=seed)
    solution = cg(assume_psd(A), b)
    assert solution.status in ("singular", "stagnated")
    assert float(solution.residual_norm) <= 1.01 * float(b.norm())
    residual = (b - A @ solution.x).norm()
    assert float(solution.residual_norm) == pytest.approx(float(residual), rel=1e-6)
    in_range = cg(assume_psd(A), A @ b)
    assert in_range.status == "converged"


def test_zero():
    A = assume_psd(positive(5, 10))
    for x0 in (None, random(5)):
        solution = cg(A, torch.zeros(5).double(), x0=x0)
        assert (solution.status, solution.iterations) == ("converged", 0)
        assert float(solution.x.abs().max()) == float(solution.residual_norm) == 0


def test_starts_from_x0():
    A, b = positive(50, 1e3), random(50)
    x = torch.linalg.solve(A, b)
    there = cg(assume_psd(A), b, x0=x)
    assert (there.status, there.iterations) == ("converged", 0)
    near = cg(assume_psd(A), b, x0=x + 1e-4 * random(50, seed=1))
    assert near.status == "converged"
    assert near.iterations < cg(assume_psd(A), b).iterations


def test_atol():
    A, b = positive(50, 1e3), random(50)
    loose = cg(assume_psd(A), b, rtol=0.0, atol=0.1)
    assert loose.status == "converged"
    assert 0.001 < float(loose.residual_norm) <= 0.1
    # absolute: the same number of iterations would not do for a larger right-hand side
    assert float(cg(assume_psd(A), 100 * b, rtol=0.0, atol=0.1).residual_norm) <= 0.1


# ----------------------------------------------------------------------- forms


def test_forms():
    matrix = positive(8, 10)
    shapes = [(2, 2), (), (3,)]
    A = DenseLinearOperator(matrix, domain=shapes, codomain=shapes, psd=True)
    A = A + 0 * IdentityLinearOperator(
        shapes, dtype=torch.float64, names=["weight", "scale", "bias"]
    )
    flat = random(8)
    blocks = [b.reshape(s) for b, s in zip(flat.split([4, 1, 3]), shapes, strict=True)]
    truth = torch.linalg.solve(matrix, flat)
    for form in (list, tuple):
        x = cg(A, form(blocks), rtol=1e-12).x
        assert type(x) is form
        assert error(torch.cat([b.flatten() for b in x]), truth) <= 1e-9
    named = dict(zip(("weight", "scale", "bias"), blocks, strict=True))
    x = cg(A, named, rtol=1e-12, x0=named).x
    assert list(x) == ["weight", "scale", "bias"]
    assert error(torch.cat([b.flatten() for b in x.values()]), truth) <= 1e-9
    many = cg(A, [torch.stack([b, 2 * b], -1) for b in blocks], rtol=1e-12).x
    assert [b.shape for b in many] == [(2, 2, 2), (2,), (3, 2)]
    assert error(many[2][:, 1], 2 * truth[5:]) <= 1e-9


def test_dense_and_foreign_matrices():
    scipy_sparse = pytest.importorskip("scipy.sparse")
    A, b = positive(20, 10), random(20)
    truth = torch.linalg.solve(A, b)
    for given_as in (A, A.numpy(), scipy_sparse.csr_array(A.numpy())):
        assert error(cg(assume_psd(given_as), b, rtol=1e-10).x, truth) <= 1e-8
    M = assume_psd(scipy_sparse.diags_array(1 / A.diagonal().numpy()))
    assert error(cg(assume_psd(A), b, rtol=1e-10, M=M).x, truth) <= 1e-8


def test_no_gradients_are_recorded():
    A = assume_psd(positive(5, 3))
    b = random(5).requires_grad_()
    assert not cg(A, b).x.requires_grad


def test_preconditioner_of_the_inverse_takes_one_iteration():
    A, b = positive(60, 1e6), random(60)
    M = assume_psd(torch.linalg.inv(A).add(torch.linalg.inv(A).T) / 2)
    solution = cg(assume_psd(A), b, M=M)
    assert solution.status == "converged"
    assert solution.iterations <= 2
    assert relative_residual(A, solution.x, b) <= 1.01e-6


def test_progress_is_shown(capsys):
    cg(DiagonalLinearOperator(torch.arange(1.0, 9.0)), torch.ones(8), progressbar=True)
    shown = capsys.readouterr().err
    assert "cg" in shown
    assert "residual" in shown
    cg(DiagonalLinearOperator(torch.arange(1.0, 9.0)), torch.ones(8))
    assert capsys.readouterr().err == ""
