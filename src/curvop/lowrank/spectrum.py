"""The spectrum of ``V Vᵀ`` from its Gram matrix."""

from __future__ import annotations

import scipy.linalg
import torch
from torch import Tensor

from curvop.eigenpairs import Eigenpairs
from curvop.lowrank.columns import FactorColumnsLinearOperator
from curvop.operators import Blocks


def nonzero(values: Tensor, of: torch.dtype, size: int) -> Tensor:
    """Which eigenvalues of a Gram matrix are no mere rounding.

    Args:
        values: Ascending, the largest included.
        of: The type of ``V``, whose rounding counts squared.
        size: Of the matrix.
    """
    rounding = max(size * torch.finfo(values.dtype).eps, 64 * torch.finfo(of).eps ** 2)
    return values > rounding * values[-1:].clamp_min(0)


def eigenpairs(V: FactorColumnsLinearOperator, K: Tensor, k: int | None) -> Eigenpairs:
    r"""The largest eigenvalues of ``V Vᵀ``, with ``K = VᵀV``.

    With ``K u = λ u`` the vectors ``X = V u / √λ`` are orthonormal up to rounding that
    grows with ``λ_max / λ``. They are made so, and ``V Vᵀ`` is solved in their span
    (Rayleigh and Ritz): ``XᵀX = L Lᵀ``, and the singular values of ``VᵀX L⁻ᵀ`` are ``√λ``.
    The residual ``A q - λ q`` is ``V e`` with ``e = Vᵀq - λ c`` for ``q = V c``.
    """
    values, U = _largest(K, k)
    kept = nonzero(values, V.dtype, len(K))
    values, U = values[kept], U[:, kept]
    if not len(values):
        none = K.new_empty(0, dtype=V.dtype)
        return Eigenpairs(none, none.new_empty(V.shape[0], 0), none, "converged", 0)
    C = (U / values.sqrt()).to(V.dtype)
    X = [x.movedim(-1, 0).flatten(1) for x in V._matmat([C])]  # [k, n_i]
    (VX,) = V._rmatmat(_columns(X, V))
    L = torch.linalg.cholesky(sum(x @ x.T for x in X))
    VQ = torch.linalg.solve_triangular(L.T, VX, upper=True, left=False)
    _, sigma, Wt = torch.linalg.svd(VQ, full_matrices=False)
    sigma, Wt = sigma.flip(0), Wt.flip(0)  # ascending
    M = torch.linalg.solve_triangular(L, Wt, upper=False, left=False)  # [k, k]: Wᵀ L⁻¹
    Q = X[0].new_empty(len(M), V.shape[0])
    for q, x in zip(Q.split([x.shape[1] for x in X], 1), X, strict=True):
        torch.mm(M, x, out=q)
    E = (VX @ M.T - C @ M.T * sigma**2).to(K.dtype)
    residuals = (E * (K @ E)).sum(0).clamp_min(0).sqrt().to(V.dtype)
    return Eigenpairs(sigma**2, Q.T, residuals, "converged", len(sigma))


def _largest(K: Tensor, k: int | None) -> tuple[Tensor, Tensor]:
    """The largest eigenvalues of ``K``, ascending, with eigenvectors."""
    R = len(K)
    if k is None or k >= R or K.device.type != "cpu":
        values, U = torch.linalg.eigh(K)
        return values[-(k or R) :], U[:, -(k or R) :]
    found = scipy.linalg.eigh(K.numpy(), subset_by_index=[R - k, R - 1])
    values, U = (torch.from_numpy(t) for t in found)
    return values, U


def _columns(X: Blocks, V: FactorColumnsLinearOperator) -> Blocks:
    shapes = V.codomain
    return [x.view(-1, *s).movedim(0, -1) for x, s in zip(X, shapes, strict=True)]
