"""The largest singular values of an operator."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from curvop.arguments import integer
from curvop.operators import LinearOperator, as_operator
from curvop.scaling import norms, unit
from curvop.spectra.eigsh import eigsh


@dataclass(frozen=True)
class SingularTriplets:
    """Some singular values of a matrix, with singular vectors.

    Attributes:
        U: Orthonormal columns ``u``, ``[M, k]``.
        values: ``σ``, descending, ``[k]``.
        V: Orthonormal columns ``v``, ``[N, k]``.
        residuals: ``(‖A v - σ u‖² + ‖Aᵀ u - σ v‖²)^½``, ``[k]``.
        status: ``"converged"``, ``"maxiter"``, ``"inaccurate"`` or ``"interrupted"``.
        num_matvecs: Number of products with ``A`` and with ``Aᵀ`` that it took.
    """

    U: Tensor  # [M, k]
    values: Tensor  # [k]
    V: Tensor  # [N, k]
    residuals: Tensor  # [k]
    status: str
    num_matvecs: int


def svds(
    A: Any,
    k: int,
    *,
    tol: float = 0.0,
    ncv: int | None = None,
    maxiter: int = 10_000,
    generator: Generator | None = None,
    progressbar: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
) -> SingularTriplets:
    r"""The largest singular values and vectors of a matrix, such as a Jacobian.

    .. math:: A v_i = σ_i u_i, \qquad A^⊤ u_i = σ_i v_i

    from the largest eigenvalues of ``AᵀA`` or ``AAᵀ``, whichever is smaller, by
    :func:`eigsh`, and the singular values of ``A`` on the subspace found. Squaring
    halves the digits of small values: the error of ``σ`` is of the order of rounding
    times ``σ₁²/σ``, so that values below ``√eps σ₁`` are noise. One product with a random
    vector gives the order of ``‖A‖``, by which ``A`` is divided: its square may overflow.

    Args:
        A: An operator ``[M, N]``, or anything that :func:`as_operator` accepts.
        k: Number of singular values, at most ``min(M, N)``.
        tol: Largest residual of the eigenvectors, relative to ``σ₁²``; 0 means rounding.
        ncv: Vectors in the basis, as in :func:`eigsh`.
        maxiter: Most products with ``AᵀA``, as in :func:`eigsh`.
        generator: Source of random vectors, as in :func:`eigsh`.
        progressbar: Whether to show a bar.
        checkpoint: A file to continue from, as in :func:`eigsh`.

    Returns:
        The singular triplets.

    Raises:
        TypeError: If something is of the wrong kind.
        ValueError: If something does not fit, or a product is not finite.

    >>> A = torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 2.0]])
    >>> svds(A, 2).values.round(decimals=3)
    tensor([3., 2.])
    """
    A = as_operator(A)
    k = integer(k, "k", 1, min(A.shape))
    size = _size(A)
    A = A / size
    if A.shape[0] < A.shape[1]:
        A, transposed = A.T, True
    else:
        transposed = False
    pairs = eigsh(
        A.T @ A,
        k,
        which="LA",
        tol=tol,
        ncv=ncv,
        maxiter=maxiter,
        generator=generator,
        progressbar=progressbar,
        checkpoint=checkpoint,
    )
    AV = A @ pairs.vectors
    kind = torch.promote_types(A.dtype, torch.float32)
    U, values, W = torch.linalg.svd(AV.to(kind), full_matrices=False)
    V = (pairs.vectors.to(kind) @ W.T).to(A.dtype)
    U = U.to(A.dtype)
    # A V = U Σ holds by construction; the residual is in AᵀU
    residuals = norms((A.T @ U - V * values).to(kind), 0)
    num_matvecs = 1 + 2 * pairs.num_matvecs + 2 * len(values)
    left, right = (V, U) if transposed else (U, V)
    return SingularTriplets(
        left, values * size, right, residuals * size, pairs.status, num_matvecs
    )


def _size(A: LinearOperator) -> float:
    """A power of two of the order of ``‖A‖``, by one product: ``AᵀA`` may overflow."""
    N = A.shape[1]
    v = torch.randn(N, generator=Generator().manual_seed(N), dtype=torch.float64)
    Av = (A @ v.to(A.device, A.dtype)).detach()
    return float(unit(Av)) if bool((Av != 0).any() & Av.isfinite().all()) else 1.0
