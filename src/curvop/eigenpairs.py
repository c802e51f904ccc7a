"""Eigenpairs with the residuals that prove them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Eigenpairs:
    """Some eigenvalues of a symmetric matrix, with eigenvectors.

    Attributes:
        values: ``λ``, ascending, ``[k]``.
        vectors: Orthonormal columns ``v``, ``[N, k]``; orthonormal with respect to ``P``
            in a generalised problem.
        residuals: ``‖A v - λ v‖``, or ``‖A v - λ P v‖``, ``[k]``, from products.
        status: ``"converged"``; ``"maxiter"``; ``"inaccurate"``, if the matrix is noisier
            than the tolerance; or ``"interrupted"``, with the pairs converged by then.
        num_matvecs: Number of products with the matrix, and with its inverse if given,
            including those for missed copies, residuals and the checkpoint.
    """

    values: Tensor  # [k]
    vectors: Tensor  # [N, k]
    residuals: Tensor  # [k]
    status: str
    num_matvecs: int
