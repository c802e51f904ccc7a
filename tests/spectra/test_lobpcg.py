"""LOBPCG against dense solvers."""

from __future__ import annotations

import pytest
import scipy.linalg
import torch

from curvop import DenseLinearOperator, DiagonalLinearOperator, assume_psd
from curvop.spectra import eigsh
from tests.comparing import error, random
from tests.spectra.matrices import SPECTRA, Watched, expected, linspace, symmetric


@pytest.mark.parametrize("which", ["LA", "SA"])
@pytest.mark.parametrize(
    "name",
    [
        "60 negative",
        "top and bottom multiple",
        "rank 2",
        "psd of rank 3",
        "identity",
        "zero",
    ],
)
def test_known_spectra(name, which):
    A = symmetric(SPECTRA[name])
    pairs = eigsh(A, 6, which=which, tol=1e-9, method="lobpcg")
    truth = expected(A, 6, which)
    scale = float(SPECTRA[name].abs().max()) or 1.0
    assert pairs.status == "converged"
    assert (pairs.values - truth).abs().max() < 1e-9 * scale
    V = pairs.vectors
    assert (V.T @ V - torch.eye(6)).abs().max() < 1e-12
    true = (A @ V - V * pairs.values).norm(dim=0)
    assert (pairs.residuals - true).abs().max() < 1e-13 * scale
    assert true.max() <= 1e-9 * scale * 1.01


@pytest.mark.parametrize("N", [1, 2, 5, 9])
def test_small_matrices(N):
    A = symmetric(random(N), seed=N)
    for k in range(1, N + 1):
        pairs = eigsh(A, k, which="SA", method="lobpcg")
        assert error(pairs.values, torch.linalg.eigvalsh(A)[:k]) < 1e-11


def test_a_preconditioner_saves_products():
    A = symmetric(torch.logspace(-5, 0, 300, dtype=torch.float64))
    near = torch.linalg.inv(A + 1e-6 * torch.eye(300))
    M = assume_psd((near + near.T) / 2)
    plain, preconditioned = (
        eigsh(A, 3, which="SA", tol=1e-9, method="lobpcg", M=M, maxiter=600)
        for M in (None, M)
    )
    assert preconditioned.status == "converged"
    assert error(preconditioned.values, expected(A, 3, "SA")) < 1e-9
    assert plain.num_matvecs > 4 * preconditioned.num_matvecs


@pytest.mark.parametrize("which", ["LA", "SA"])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_generalised_with_a_dense_matrix(which, preconditioned):
    A = symmetric(SPECTRA["60 negative"])
    B = symmetric(linspace(0.1, 3, 500), seed=1)
    truth = torch.from_numpy(scipy.linalg.eigh(A.numpy(), B.numpy(), eigvals_only=True))
    inverse = torch.linalg.inv(B)
    M = (inverse + inverse.T) / 2 if preconditioned else None
    pairs = eigsh(
        A, 3, which=which, tol=1e-11, P=assume_psd(B), M=M, method="lobpcg", ncv=None
    )
    assert pairs.status == "converged"
    assert error(pairs.values, truth[-3:] if which == "LA" else truth[:3]) < 1e-10
    V = pairs.vectors
    assert (V.T @ B @ V - torch.eye(3)).abs().max() < 1e-11
    true = (A @ V - B @ V * pairs.values).norm(dim=0)
    assert (pairs.residuals - true).abs().max() < 1e-13


def test_agrees_with_lanczos_on_a_diagonal():
    A, P = symmetric(SPECTRA["60 negative"]), DiagonalLinearOperator(linspace(0.1, 9, 500))
    M = DiagonalLinearOperator(1 / linspace(0.1, 9, 500))
    lanczos = eigsh(A, 2, which="LA", tol=1e-10, P=P)
    lobpcg = eigsh(A, 2, which="LA", tol=1e-10, P=P, M=M, method="lobpcg")
    assert error(lobpcg.values, lanczos.values) < 1e-11


def test_products_are_counted_and_limited():
    A = Watched(symmetric(SPECTRA["60 negative"]))
    pairs = eigsh(A, 4, which="LA", method="lobpcg", maxiter=30)
    assert pairs.status == "maxiter"
    assert pairs.num_matvecs == A.seen[0] <= 30 + 4 + 4
    true = (A @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
    assert error(pairs.residuals, true) < 1e-10


def test_a_start_close_to_the_solution():
    A = symmetric(SPECTRA["60 negative"])
    V = torch.linalg.eigh(A).eigenvectors[:, -3:]
    pairs = eigsh(A, 3, which="LA", tol=1e-9, v0=V, method="lobpcg")
    assert pairs.num_matvecs == 3
    assert error(pairs.values, expected(A, 3, "LA")) < 1e-12


def test_single_precision():
    A = symmetric(SPECTRA["60 negative"]).float()
    pairs = eigsh(A, 3, which="SA", tol=1e-3, method="lobpcg")
    assert pairs.status == "converged"
    assert pairs.vectors.dtype == torch.float32
    assert error(pairs.values, expected(A.double(), 3, "SA")) < 1e-3


def test_which_it_can():
    A = symmetric(SPECTRA["60 negative"])
    psd = DenseLinearOperator(symmetric(SPECTRA["psd of rank 3"]), psd=True)
    assert error(eigsh(psd, 1, method="lobpcg").values, torch.tensor([3.0])) < 1e-12
    for which in ("LM", "BE"):
        with pytest.raises(ValueError, match="one end of the spectrum"):
            eigsh(A, 2, which=which, method="lobpcg")
    with pytest.raises(ValueError, match="as the preconditioner"):
        eigsh(A, 2, which="SM", inverse=A, method="lobpcg")
    with pytest.raises(ValueError, match="positive definite P"):
        eigsh(A, 2, which="LA", P=-A, method="lobpcg")
