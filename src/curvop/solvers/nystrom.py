"""The top of the spectrum, sketched, as preconditioner."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from curvop.generators import source
from curvop.operators import (
    IdentityLinearOperator,
    LinearOperator,
    LowRankLinearOperator,
    assume_psd,
)
from curvop.solvers.probes import normal
from curvop.solvers.system import check_count, check_number, tagged, times


def nystrom_preconditioner(
    A: Any,
    rank: int,
    *,
    damping: float = 0.0,
    generator: Generator | None = None,
) -> LinearOperator:
    r"""Precondition ``A + damping I`` by a randomised Nyström approximation of ``A``.

    .. math:: M = (\hat λ_r + μ) \, U (\hat Λ + μ I)^{-1} U^⊤ + (I - U U^⊤), \qquad
        A Ω (Ω^⊤ A Ω)^{-1} (A Ω)^⊤ = U \hat Λ U^⊤

    with ``μ`` the damping and ``Ω`` a random matrix of ``r`` orthonormal columns. The
    ``r`` largest eigenvalues are moved to where the others are, so that CG sees a small
    condition number where the spectrum decays. It takes ``r`` products, all at once, and
    stores ``U``, ``r`` vectors.

    Args:
        A: The matrix ``[N, N]`` without the damping: an operator tagged ``psd``.
        rank: Number ``r`` of columns.
        damping: What is added to the diagonal of ``A`` in the system to solve.
        generator: Source of ``Ω``. By default a fresh one, seeded by the operating
            system. No global generator is touched. A run with a checkpoint needs the same
            preconditioner when it is started again: give a seeded one.

    Returns:
        A positive definite operator, for ``M=`` of :func:`~curvop.cg`.

    Raises:
        TypeError: If something is of the wrong kind.
        ValueError: If the rank is not between 1 and ``N``, ``A`` is not tagged, or zero.
        FloatingPointError: If a product is not finite.

    References:
        Frangella, Tropp and Udell, "Randomized Nyström preconditioning", 2023,
        algorithms 2.1 and equation 5.3.

    >>> from curvop import assume_psd, cg, nystrom_preconditioner
    >>> A = assume_psd(torch.diag(torch.logspace(0, -8, 100, dtype=torch.float64)))
    >>> b = torch.ones(100, dtype=torch.float64)
    >>> damped = A + 1e-6 * IdentityLinearOperator.like(A)
    >>> M = nystrom_preconditioner(A, 60, damping=1e-6)
    >>> cg(damped, b, M=M).iterations < cg(damped, b).iterations / 5
    True
    """
    A = tagged(A, "nystrom_preconditioner", "psd")
    damping = check_number("damping", damping)
    N = A.shape[1]
    if check_count("rank", rank) > N:
        raise ValueError(f"Expected a rank of at most {N}, the size of A, got {rank}.")
    with torch.no_grad():
        U, values = _sketch(A, rank, source(generator))
    lowest = values.min() + damping
    top = LowRankLinearOperator(U, coefficients=lowest / (values + damping) - 1)
    return assume_psd(IdentityLinearOperator.like(A) + top)


def _sketch(A: LinearOperator, r: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Eigenvectors as columns and eigenvalues of the Nyström approximation."""
    Omega = torch.linalg.qr(normal(r, A, generator).T.to(_working(A)))[0]
    Y = times(A, Omega.T.contiguous()).T
    if not bool(Y.isfinite().all()):
        raise FloatingPointError("Expected finite products with A, got inf or nan.")
    size = float(torch.linalg.matrix_norm(Y, 2))
    if size == 0:
        raise ValueError("Expected a matrix other than zero.")
    # a shift that makes the core positive definite in spite of rounding
    nu = Y.shape[0] ** 0.5 * torch.finfo(A.dtype).eps * size
    while True:
        Y_nu = Y + nu * Omega
        core = Omega.T @ Y_nu
        L, failed = torch.linalg.cholesky_ex((core + core.T) / 2)
        if not failed:
            break
        nu *= 10
    B = torch.linalg.solve_triangular(L, Y_nu.T, upper=False)  # [r, N]
    _, sigma, Vh = torch.linalg.svd(B, full_matrices=False)
    values = sigma**2 - nu
    kept = values > nu  # the others are rounding
    return Vh[kept].T.to(A.dtype), values[kept].to(A.dtype)


def _working(A: LinearOperator) -> torch.dtype:
    return torch.float32 if A.dtype.itemsize < 4 else A.dtype
