"""Preconditioners: Jacobi (the diagonal) and Nyström (the largest eigenvalues)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from curvop.arguments import at_least
from curvop.generators import source
from curvop.operators import (
    DiagonalLinearOperator,
    IdentityLinearOperator,
    LinearOperator,
    LowRankLinearOperator,
    Vector,
    admit,
    as_operator,
    assume_psd,
    read,
)
from curvop.scaling import norms
from curvop.solvers.system import (
    blocks_of,
    check_number,
    rows_of,
    tagged,
    times,
)

# Probes that are multiplied at once.
CHUNK = 16


def jacobi_preconditioner(
    A: Any,
    diagonal: Vector | None = None,
    *,
    damping: float = 0.0,
    num_probes: int = 64,
    generator: Generator | None = None,
) -> DiagonalLinearOperator:
    r"""Precondition ``A + damping I`` by its diagonal.

    .. math:: M = \operatorname{diag}(d + \text{damping})^{-1}

    If no diagonal is given, it is estimated from probes ``z`` of signs,

    .. math:: d ≈ \frac{1}{m} \sum_{i=1}^m z_i ∘ A z_i

    (Bekas, Kokiopoulou and Saad, "An estimator for the diagonal of a matrix", 2007).
    An estimated entry below its standard error is replaced by that; a given one that is not
    positive by the smallest positive one.

    Args:
        A: The matrix ``[N, N]``, without the damping.
        diagonal: Its diagonal, if it is known: ``[N]``, blocks, or a dict of blocks.
        damping: What is added to the diagonal of ``A`` in the system to solve.
        num_probes: Number ``m`` of products for the estimate; at least 2.
        generator: Source of the probes. By default a fresh one, seeded by the operating
            system. No global generator is touched.

    Returns:
        A positive definite operator, for ``M=`` of :func:`~curvop.cg`.

    Raises:
        TypeError: If something is of the wrong kind or dtype.
        ValueError: If something does not fit, or the diagonal is nowhere positive.

    >>> from curvop import jacobi_preconditioner
    >>> A = torch.tensor([[4.0, 1.0], [1.0, 2.0]])
    >>> jacobi_preconditioner(A, A.diagonal()) @ torch.ones(2)
    tensor([0.2500, 0.5000])
    """
    A = as_operator(A)
    if A.domain != A.codomain:
        raise ValueError(f"Expected a square matrix, got {A.shape}.")
    damping = check_number("damping", damping)
    if diagonal is None:
        d, floor = _estimated(A, at_least(1, "num_probes", num_probes), generator)
    else:
        blocks, form = read(diagonal, A.input_space)
        if not form.is_vector:
            raise ValueError("Expected one diagonal, got columns.")
        d = rows_of([admit(b, A.dtype, A.device).detach() for b in blocks])[0]
        floor = torch.zeros_like(d)
    positive = d[d > 0]
    if not bool(d.isfinite().all()) or not len(positive):
        raise ValueError("Expected a finite diagonal with positive entries.")
    d = torch.maximum(d, floor)
    d = torch.where(d > 0, d, positive.min())
    inverse = blocks_of((1 / (d + damping))[None], A.input_space)
    return DiagonalLinearOperator([b.squeeze(-1) for b in inverse], names=A.domain_names)


def _estimated(
    A: LinearOperator, m: int, generator: Generator | None
) -> tuple[Tensor, Tensor]:
    """The diagonal and its standard error, from products with signs."""
    if m < 2:
        raise ValueError("Expected num_probes of at least 2, to estimate their spread.")
    generator = source(generator)
    mean = torch.zeros(A.shape[1], dtype=A.dtype, device=A.device)
    spread = torch.zeros_like(mean)  # root of the sum of squared distances to the mean
    for i in range(0, m, CHUNK):
        k = min(CHUNK, m - i)
        Z = _signs(k, A, generator)
        samples = Z * times(A, Z)
        own = samples.mean(0)
        shift = own - mean
        moved = shift * (i * k / (i + k)) ** 0.5
        mean = mean + shift * (k / (i + k))
        spread = torch.hypot(torch.hypot(spread, moved), norms(samples - own, 0))
    return mean, spread / (m * (m - 1)) ** 0.5


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
    ``r`` largest eigenvalues are moved to where the others are, so that CG has a small
    condition number if the spectrum decays. It takes ``r`` products, all at once, and
    stores ``U``, ``r`` vectors.

    Args:
        A: The matrix ``[N, N]`` without the damping: an operator tagged ``psd``.
        rank: Number ``r`` of columns.
        damping: What is added to the diagonal of ``A`` in the system to solve.
        generator: Source of ``Ω``. By default a fresh one, seeded by the operating
            system. No global generator is touched. A run with a checkpoint needs the same
            preconditioner when it is started again: pass a generator with a seed.

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
    if at_least(1, "rank", rank) > N:
        raise ValueError(f"Expected a rank of at most {N}, the size of A, got {rank}.")
    with torch.no_grad():
        U, values = _sketch(A, rank, source(generator))
    lowest = values.min() + damping
    top = LowRankLinearOperator(U, coefficients=lowest / (values + damping) - 1)
    return assume_psd(IdentityLinearOperator.like(A) + top)


def _sketch(A: LinearOperator, r: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Eigenvectors as columns and eigenvalues of the Nyström approximation."""
    Omega = torch.linalg.qr(
        _normal(r, A, generator).T.to(torch.promote_types(A.dtype, torch.float32))
    )[0]
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
    kept = values > nu  # smaller eigenvalues are rounding errors
    return Vh[kept].T.to(A.dtype), values[kept].to(A.dtype)


# ---------------------------------------------------------------------- random rows


def _signs(K: int, A: LinearOperator, generator: Generator) -> Tensor:
    """``K`` rows of ``±1`` over the domain of ``A``."""
    shape, device = (K, A.shape[1]), generator.device
    bits = torch.randint(0, 2, shape, generator=generator, device=device)
    return (bits * 2 - 1).to(A.device, A.dtype)


def _normal(K: int, A: LinearOperator, generator: Generator) -> Tensor:
    """``K`` rows of standard normal numbers over the domain of ``A``."""
    shape, device = (K, A.shape[1]), generator.device
    draw = torch.randn(shape, generator=generator, device=device, dtype=torch.float32)
    return draw.to(A.device, A.dtype)
