"""A family of dampings from one Krylov space."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curvop import DenseLinearOperator, IdentityLinearOperator, assume_psd, cg, cg_shifts
from tests.comparing import error, random
from tests.solvers.matrices import Watched, eye, interrupted, positive, with_spectrum

dampings = st.lists(st.floats(0, 100), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), N=st.integers(1, 12), shifts=dampings)
def test_each_column_is_what_cg_finds_for_the_damped_matrix(seed, N, shifts):
    A = assume_psd(positive(N, 100, seed))
    b = random(N, seed=seed + 1)
    path = cg_shifts(A, b, shifts, rtol=1e-11)
    assert path.status == "converged"
    assert path.x.shape == (N, len(shifts))
    eye = IdentityLinearOperator.like(A)
    for x, shift in zip(path.x.T, shifts, strict=True):
        assert error(x, cg(A + shift * eye, b, rtol=1e-11).x) <= 1e-7


def test_a_path_down_to_a_condition_of_a_million():
    A, b = positive(300, 1e8), random(300)
    shifts = torch.logspace(1, -6, 15, dtype=torch.float64)
    path = cg_shifts(assume_psd(A), b, shifts)
    assert path.statuses == ("converged",) * 15
    for x, shift, norm in zip(path.x.T, shifts, path.residual_norm, strict=True):
        residual = b - A @ x - shift * x
        assert float(residual.norm()) <= 1.01e-6 * float(b.norm())
        assert float(norm) == pytest.approx(float(residual.norm()), rel=1e-6, abs=1e-10)


def test_takes_the_products_of_the_slowest():
    A = Watched(positive(200, 1e6))
    b = random(200)
    shifts = [1e-1, 1e-3, 1e-2, 1.0]
    path = cg_shifts(A, b, shifts)
    slowest = cg(assume_psd(A.matrix + 1e-3 * eye(200)), b).iterations
    assert abs(path.iterations - slowest) <= 2
    assert A.columns == [1] * path.iterations + [4]  # at the end, the true residuals
    assert path.history.shape == (path.iterations + 1, 4)


def test_what_rounding_has_left_goes_on_by_itself():
    A, b = positive(200, 1e3).float(), random(200).float()
    path = cg_shifts(assume_psd(A), b, [0.0, 1.0], rtol=2e-6)
    assert path.statuses[1] == "converged"
    assert path.statuses[0] in ("converged", "stagnated")
    true = b.double() - A.double() @ path.x[:, 0].double()
    assert float(path.residual_norm[0]) == pytest.approx(float(true.norm()), rel=0.5)


def test_singular_without_damping():
    values = torch.linspace(0, 1, 50, dtype=torch.float64)
    A, b = with_spectrum(values), random(50)
    path = cg_shifts(assume_psd(A), b, [0.0, 0.1])
    assert path.statuses[1] == "converged"
    assert path.statuses[0] in ("singular", "stagnated")
    truth = torch.linalg.solve(A + 0.1 * eye(50), b)
    assert error(path.x[:, 1], truth) <= 1e-4


def test_zero():
    path = cg_shifts(assume_psd(positive(5, 2)), torch.zeros(5).double(), [0.0, 1.0])
    assert path.status == "converged"
    assert float(path.x.abs().max()) == 0


def test_blocks():
    matrix, b = positive(8, 10), random(8)
    shapes = [(2, 2), (), (3,)]
    A = DenseLinearOperator(matrix, domain=shapes, codomain=shapes, psd=True)
    parts = [p.reshape(s) for p, s in zip(b.split([4, 1, 3]), shapes, strict=True)]
    x = cg_shifts(A, parts, [0.5, 1.0], rtol=1e-12).x
    assert [p.shape for p in x] == [(2, 2, 2), (2,), (3, 2)]
    truth = torch.linalg.solve(matrix + eye(8), b)
    assert error(torch.cat([p.reshape(-1, 2) for p in x])[:, 1], truth) <= 1e-9


def test_maxiter():
    A, b = positive(50, 1e4), random(50)
    path = cg_shifts(assume_psd(A), b, [0.0, 10.0], maxiter=8)
    assert path.statuses == ("maxiter", "converged")
    assert path.iterations == 8


def test_interrupted_returns_what_it_has():
    A = Watched(positive(50, 1e4), at=dict.fromkeys(range(6, 1000), interrupted))
    path = cg_shifts(A, random(50), [0.0, 1.0])
    assert path.statuses == ("interrupted", "interrupted")
    assert path.iterations == 5
    residual = random(50) - A.matrix @ path.x[:, 0]
    assert float(path.residual_norm[0]) == pytest.approx(float(residual.norm()), rel=1e-6)


@pytest.mark.parametrize(
    ("shifts", "message"),
    [
        ([], "at least one shift"),
        ([-0.1], "at least 0"),
        ([float("nan")], "finite"),
        ([[1.0]], r"shifts \[S\]"),
    ],
)
def test_bad_shifts(shifts, message):
    with pytest.raises(ValueError, match=message):
        cg_shifts(assume_psd(positive(3, 2)), random(3), shifts)


def test_one_right_hand_side_only():
    with pytest.raises(ValueError, match="one right-hand side"):
        cg_shifts(assume_psd(positive(3, 2)), random(3, 2), [1.0])
