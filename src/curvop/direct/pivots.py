"""Pivots: eliminate a block of variables, or delay directions that would lose precision.

A direction with a small eigenvalue that is strongly coupled to the state would add a huge
multiple of the coupling to the cost of the state, whose own entries would be lost to
rounding. As in sparse symmetric-indefinite factorisations (Duff & Reid, "The
multifrontal solution of indefinite sparse symmetric linear equations", 1983), such a
direction is delayed, and eliminated upstream together with further variables.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor

from curvop.operators import SingularSystemError

Solve = Callable[[Tensor], Tensor]


class Pivot(ABC):
    """A symmetric block ``M`` of variables ``ξ``, coupled by ``G`` to the state ``u``.

    Stationarity of ``½ ξᵀMξ + ξᵀ(Gu − h)`` is ``ξ = M⁻¹(h − G u)``. Vectors are rows.

    Attributes:
        num_late: Number of directions that are delayed.
        num_negative: Number of negative eigenvalues of the eliminated part.
        logabsdet: Logarithm of its absolute determinant.
        nbytes: Bytes that are kept.
    """

    num_late: int
    num_negative: int
    logabsdet: float
    nbytes: int

    @abstractmethod
    def backward(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Eliminate, for a right-hand side ``h``.

        Returns:
            A value for :meth:`forward`; the addition to the state's right-hand side; the
            right-hand side of the delayed variables.
        """

    @abstractmethod
    def forward(self, saved: Tensor, u: Tensor, y: Tensor) -> Tensor:
        """``ξ``, from the state and the delayed variables."""


class Eliminated(NamedTuple):
    """A pivot, and its effect on the cost of the state.

    Attributes:
        pivot: Solves with the block.
        correction: ``Gᵀ M⁻¹ G`` of the eliminated part, to be subtracted from ``P``.
        N: Coupling of the delayed variables to the state, ``[k, a]``.
        D: Their cost, a diagonal ``[k]``.
    """

    pivot: Pivot
    correction: Tensor
    N: Tensor
    D: Tensor


def eliminate(M: Tensor, G: Tensor, threshold: float, name: str) -> Eliminated:
    """Eliminate ``M`` ``[s, s]``, coupled by ``G`` ``[s, a]``.

    A direction ``i`` of eigenvalue ``λ`` is delayed if ``‖g_i‖² > threshold · |λ|``.
    Eigenvectors are computed only if that is possible.

    Raises:
        SingularSystemError: If the block is not finite, or singular in a direction that
            is coupled to nothing.
    """
    if not bool(torch.isfinite(M).all()):
        raise SingularSystemError(
            f"The pivot of {name} is not finite: the matrix is singular to working "
            "precision, or its entries are out of range."
        )
    L, info = torch.linalg.cholesky_ex(M)
    if not info:
        logabsdet = 2 * float(L.diagonal().log().sum())
        solve: Solve = lambda h: torch.cholesky_solve(h.T, L).T  # noqa: E731
        direct = _Direct(solve, G, 0, logabsdet, L.nbytes)
        size = direct.correction(G).diagonal()  # positive: no cancellation in them
    else:
        LU, order, info = torch.linalg.lu_factor_ex(M)
        if info:
            return _spectral(M, G, threshold, name)
        logabsdet = float(LU.diagonal().abs().log().sum())
        solve = lambda h: torch.linalg.lu_solve(LU, order, h.T).T  # noqa: E731
        direct = _Direct(solve, G, _num_negative(M), logabsdet, LU.nbytes)
        size = G.norm(dim=0) * direct.gain.norm(dim=0)
    if bool((size <= threshold).all()):
        return Eliminated(direct, direct.correction(G), G[:0], G.new_zeros(0))
    return _spectral(M, G, threshold, name)


@final
class _Direct(Pivot):
    """The whole block, eliminated by a factorisation."""

    num_late = 0

    def __init__(
        self, solve: Solve, G: Tensor, num_negative: int, logabsdet: float, nbytes: int
    ) -> None:
        self._solve = solve
        self.gain = solve(G.T).T  # M⁻¹ G
        self.num_negative, self.logabsdet = num_negative, logabsdet
        self.nbytes = nbytes + self.gain.nbytes

    def correction(self, G: Tensor) -> Tensor:
        return G.T @ self.gain

    def backward(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._solve(h), h @ self.gain, h[:, :0]

    def forward(self, saved: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return saved - u @ self.gain.T


def _spectral(M: Tensor, G: Tensor, threshold: float, name: str) -> Eliminated:
    """Eliminate by eigenvectors, and delay some of them."""
    λ, U = torch.linalg.eigh(M)
    g = U.T @ G
    late = g.square().sum(1) > threshold * λ.abs()
    now = ~late
    if bool((λ[now] == 0).any()):
        raise SingularSystemError(
            f"The matrix is singular: {name} has a pivot that is zero. Choose another "
            "damping."
        )
    pivot = _Spectral(U[:, now], λ[now], g[now] / λ[now, None], U[:, late])
    return Eliminated(pivot, g[now].T @ pivot.gain, g[late], λ[late])


@final
class _Spectral(Pivot):
    """The span of some eigenvectors ``U``, eliminated; the others are delayed."""

    def __init__(self, U: Tensor, λ: Tensor, gain: Tensor, late: Tensor) -> None:
        self._U, self._λ, self.gain, self._late = U, λ, gain, late
        self.num_late = late.shape[1]
        self.num_negative = int((λ < 0).sum())
        self.logabsdet = float(λ.abs().log().sum())
        self.nbytes = sum(t.nbytes for t in (U, λ, gain, late))

    def backward(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        now = h @ self._U
        return now / self._λ, now @ self.gain, h @ self._late

    def forward(self, saved: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return (saved - u @ self.gain.T) @ self._U.T + y @ self._late.T


def _num_negative(M: Tensor) -> int:
    """Number of negative eigenvalues, by the blocks of Bunch and Kaufman's ``LDLᵀ``."""
    LD, order, _ = torch.linalg.ldl_factor_ex(M)
    d, e = LD.diagonal().tolist(), LD.diagonal(-1).tolist()
    paired = (order < 0).tolist()  # rows of a 2x2 block
    i = count = 0
    while i < len(d):
        if not paired[i]:
            count += d[i] < 0
            i += 1
            continue
        det, tr = d[i] * d[i + 1] - e[i] ** 2, d[i] + d[i + 1]
        count += 1 if det < 0 else 2 * (tr < 0)
        i += 2
    return count
