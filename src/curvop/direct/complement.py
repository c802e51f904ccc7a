"""The parameters of a linear layer that do not affect its output on so few samples."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import pad


@final
class Complement:
    r"""``C = X̄ (I − V Vᵀ)``, with the damping ``ε`` for a pivot.

    It moves the gradient of the input by ``μ C`` (its first ``w`` columns). Eliminated,
    it subtracts ``ε⁻¹ μμᵀ ⊗ (I − V Vᵀ)`` from the cost ``P`` of the input. Directions of
    ``μ = U σ Qᵀ`` in which that is large are delayed: they go upstream as variables ``Y``
    with ``C = Q Y V_oᵀ`` and the cost ``½ ε ‖Y‖²``.

    Args:
        V: Orthonormal, ``[w̄, r]``.
        μ: Adjoint of the output, ``[n, m]``; zero if nothing couples.
        w: Number of weights of a unit whose inputs move.
        damping: ``ε``.
        threshold: Delay where elimination would add more than that.

    Attributes:
        num_pivots: Number of directions that are eliminated.
        num_late: Number of those that are delayed.
    """

    def __init__(
        self, V: Tensor, μ: Tensor, w: int, damping: float, threshold: float
    ) -> None:
        self._V, self._w, self._damping = V, w, damping
        U, σ, Qt = torch.linalg.svd(μ, full_matrices=False)
        late = (σ**2 > threshold * abs(damping)) & (σ > torch.finfo(σ.dtype).eps * σ[0])
        now = ~late
        self._μ = (U[:, now] * σ[now]) @ Qt[now]
        self._N, self._Q = U[:, late] * σ[late], Qt[late].T
        self._Vo = V[:, :0]
        m, (w_bar, r), q = μ.shape[1], V.shape, self._Q.shape[1]
        if q:  # an orthonormal basis, only needed here
            self._Vo = torch.linalg.qr(V, mode="complete")[0][:, r:]
        self.num_pivots, self.num_late = (m - q) * (w_bar - r), q * (w_bar - r)
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
        D = N.new_full((self.num_late,), self._damping)
        return N.reshape(self.num_late, len(self._N) * self._w), D

    def backward(self, g: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
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

    def forward(self, g: Tensor, u: Tensor, y: Tensor) -> Tensor:
        """Parameters with this complement, from the state and the delayed variables.

        Their other component is arbitrary.
        """
        K, gain = len(g), self._gain
        u = pad(u.reshape(K, len(self._μ), self._w), (0, len(self._V) - self._w))
        μT = self._μ.T.expand(K, -1, -1)
        X = (gain * self._X(g)).baddbmm_(μT, u, alpha=-gain)
        if self.num_late:
            Y = y.reshape(K, self._Q.shape[1], self._Vo.shape[1])
            X = X + self._Q @ (Y @ self._Vo.T - self._Q.T @ X)
        return X.flatten(1)

    def _X(self, g: Tensor) -> Tensor:
        """``X̄``: ``[K, p] -> [K, m, w̄]``."""
        return g.reshape(len(g), self._μ.shape[1], len(self._V))
