"""Pivots: eliminate a block of variables, or delay directions that would lose precision.

A direction with a small eigenvalue that is strongly coupled to the state would add a huge
multiple of the coupling to the cost of the state, whose own entries would be lost to
rounding. As in sparse symmetric-indefinite factorisations (Duff & Reid, "The
multifrontal solution of indefinite sparse symmetric linear equations", 1983), such a
direction is delayed, and eliminated upstream together with further variables.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor
from torch.nn.functional import pad

from curvop.operators import SingularSystemError

Solve = Callable[[Tensor], Tensor]


class Pivot(ABC):
    """A symmetric block ``M`` of variables ``ξ``, coupled by ``G`` to the state ``u``.

    Stationarity of ``½ ξᵀMξ + ξᵀ(Gu − h)`` is ``ξ = M⁻¹(h − G u)``. Vectors are rows.

    Attributes:
        num_delayed: Number of directions that are delayed.
        num_negative: Number of negative eigenvalues of the eliminated part.
        logabsdet: Logarithm of its absolute determinant.
        nbytes: Bytes that are kept.
    """

    num_delayed: int
    num_negative: int
    logabsdet: float
    nbytes: int

    @abstractmethod
    def eliminate(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Eliminate, for a right-hand side ``h``.

        Returns:
            A value for :meth:`substitute`; the addition to the state's right-hand side;
            the right-hand side of the delayed variables.
        """

    @abstractmethod
    def substitute(self, saved: Tensor, u: Tensor, y: Tensor) -> Tensor:
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

    num_delayed = 0

    def __init__(
        self, solve: Solve, G: Tensor, num_negative: int, logabsdet: float, nbytes: int
    ) -> None:
        self._solve = solve
        self.gain = solve(G.T).T  # M⁻¹ G
        self.num_negative, self.logabsdet = num_negative, logabsdet
        self.nbytes = nbytes + self.gain.nbytes

    def correction(self, G: Tensor) -> Tensor:
        return G.T @ self.gain

    def eliminate(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self._solve(h), h @ self.gain, h[:, :0]

    def substitute(self, saved: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return saved - u @ self.gain.T


def _spectral(M: Tensor, G: Tensor, threshold: float, name: str) -> Eliminated:
    """Eliminate by eigenvectors, and delay some of them."""
    λ, U = torch.linalg.eigh(M)
    g = U.T @ G
    delayed = g.square().sum(1) > threshold * λ.abs()
    now = ~delayed
    if bool((λ[now] == 0).any()):
        raise SingularSystemError(
            f"The matrix is singular: {name} has a pivot that is zero. Choose another "
            "damping."
        )
    pivot = _Spectral(U[:, now], λ[now], g[now] / λ[now, None], U[:, delayed])
    return Eliminated(pivot, g[now].T @ pivot.gain, g[delayed], λ[delayed])


@final
class _Spectral(Pivot):
    """The span of some eigenvectors ``U``, eliminated; the others are delayed."""

    def __init__(self, U: Tensor, λ: Tensor, gain: Tensor, delayed: Tensor) -> None:
        self._U, self._λ, self.gain, self._delayed = U, λ, gain, delayed
        self.num_delayed = delayed.shape[1]
        self.num_negative = int((λ < 0).sum())
        self.logabsdet = float(λ.abs().log().sum())
        self.nbytes = sum(t.nbytes for t in (U, λ, gain, delayed))

    def eliminate(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        now = h @ self._U
        return now / self._λ, now @ self.gain, h @ self._delayed

    def substitute(self, saved: Tensor, u: Tensor, y: Tensor) -> Tensor:
        return (saved - u @ self.gain.T) @ self._U.T + y @ self._delayed.T


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


@final
class NullSpacePivot:
    r"""``C = X̄ (I − V Vᵀ)``: the part of a linear layer's parameters in the null space.

    With so few samples the output does not depend on it; its pivot is the damping ``ε``.

    It moves the gradient of the input by ``μ C`` (its first ``w`` columns). Eliminated,
    it subtracts ``ε⁻¹ μμᵀ ⊗ (I − V Vᵀ)`` from the Schur complement ``P`` in the input.
    Directions of ``μ = U σ Qᵀ`` in which that is large are delayed: they go upstream as
    variables ``Y`` with ``C = Q Y V_oᵀ`` and the cost ``½ ε ‖Y‖²``.

    Args:
        V: Orthonormal, ``[w̄, r]``.
        μ: Adjoint of the output, ``[n, m]``; zero if nothing couples.
        w: Number of weights of a unit whose inputs move.
        damping: ``ε``.
        threshold: Delay where elimination would add more than that.

    Attributes:
        num_pivots: Number of directions that are eliminated.
        num_delayed: Number of those that are delayed.
    """

    def __init__(
        self, V: Tensor, μ: Tensor, w: int, damping: float, threshold: float
    ) -> None:
        self._V, self._w, self._damping = V, w, damping
        U, σ, Qt = torch.linalg.svd(μ, full_matrices=False)
        delayed = (σ**2 > threshold * abs(damping)) & (σ > torch.finfo(σ.dtype).eps * σ[0])
        now = ~delayed
        self._μ = (U[:, now] * σ[now]) @ Qt[now]
        self._N, self._Q = U[:, delayed] * σ[delayed], Qt[delayed].T
        self._Vo = V[:, :0]
        m, (w_bar, r), q = μ.shape[1], V.shape, self._Q.shape[1]
        if q:  # an orthonormal basis, only needed here
            self._Vo = torch.linalg.qr(V, mode="complete")[0][:, r:]
        self.num_pivots, self.num_delayed = (m - q) * (w_bar - r), q * (w_bar - r)
        self._gain = 1 / damping if damping and self.num_pivots else 0.0

    @property
    def logabsdet(self) -> float:
        """Of the pivots."""
        return self.num_pivots * math.log(abs(self._damping)) if self.num_pivots else 0.0

    @property
    def num_negative(self) -> int:
        """Of the pivots."""
        return self.num_pivots if self._damping < 0 else 0

    @property
    def nbytes(self) -> int:
        """Of what is kept."""
        return sum(t.nbytes for t in (self._μ, self._N, self._Q, self._Vo))

    def correction(self) -> Tensor:
        """What the eliminated directions subtract from ``P``."""
        V = self._V[: self._w]
        rest = torch.eye(self._w).to(V) - V @ V.T
        return torch.kron(self._gain * self._μ @ self._μ.T, rest)

    def delayed(self) -> tuple[Tensor, Tensor]:
        """Coupling ``N`` ``[k, a]`` and cost ``D`` ``[k]`` of the delayed directions."""
        N = torch.einsum("na,jb->abnj", self._N, self._Vo[: self._w])
        D = N.new_full((self.num_delayed,), self._damping)
        return N.reshape(self.num_delayed, len(self._N) * self._w), D

    def eliminate(self, g: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """Eliminate, for right-hand sides ``g`` ``[K, p]`` of the parameters.

        Args:
            g: The right-hand sides.
            seen: Their coordinates ``X̄ V``, ``[K, m·r]``, which affect the output.

        Returns:
            The addition to the state's right-hand side, and that of the delayed variables.
        """
        X, Ξ = self._X(g), seen.reshape(len(g), -1, self._V.shape[1])
        p = self._μ @ X[:, :, : self._w] - self._μ @ Ξ @ self._V[: self._w].T
        Y = self._Q.T @ X @ self._Vo
        return p.mul_(self._gain).flatten(1), Y.flatten(1)

    def substitute(self, g: Tensor, u: Tensor, y: Tensor) -> Tensor:
        """Parameters with this ``C``, from the state and the delayed variables.

        Their other component is arbitrary.
        """
        K, gain = len(g), self._gain
        u = pad(u.reshape(K, len(self._μ), self._w), (0, len(self._V) - self._w))
        μT = self._μ.T.expand(K, -1, -1)
        X = (gain * self._X(g)).baddbmm_(μT, u, alpha=-gain)
        if self.num_delayed:
            Y = y.reshape(K, self._Q.shape[1], self._Vo.shape[1])
            X = X + self._Q @ (Y @ self._Vo.T - self._Q.T @ X)
        return X.flatten(1)

    def _X(self, g: Tensor) -> Tensor:
        """``X̄``: ``[K, p] -> [K, m, w̄]``."""
        return g.reshape(len(g), self._μ.shape[1], len(self._V))
