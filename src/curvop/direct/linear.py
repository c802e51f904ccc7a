"""The stage of ``nn.Linear``, which forms no matrix of parameters by parameters."""

from __future__ import annotations

from typing import final

import torch
from torch import Size, Tensor
from torch.nn.functional import pad

from curvop.direct.pivots import NullSpacePivot
from curvop.direct.stages import ParametricStage
from curvop.operators import Blocks, SingularSystemError


@final
class LinearStage(ParametricStage):
    r"""``Z̄ X̄ᵀ`` with parameters ``X̄ = [W b]`` and inputs ``Z̄ = [Z 1]``.

    ``X̄`` is ``[m, w̄]``, for ``m`` units, and ``Z̄`` is ``[n, w̄]``. The layer is linear in
    its input and in its parameters: ``Q = R = 0``. With ``Z̄ = L Vᵀ``,
    ``V`` orthonormal ``[w̄, r]`` and ``r = min(n, w̄)``, the output depends on
    ``Ξ = X̄ V`` only; the rest of ``X̄`` is in the null space. In these coordinates

    .. math:: B = I ⊗ L, \qquad S_{(iρ),(nj)} = μ_{ni} V_{jρ}

    for units ``i``, coordinates ``ρ``, samples ``n``, inputs ``j``, and ``μ`` the adjoint
    of the output.

    Args:
        name: The name of the layer.
        shapes: Shapes of the parameters.
        W: The weight ``[m, w]``, a parameter or a constant.
        Z: Inputs ``[n, w]``.
        μ: ``[n, m]``; zero for the Gauss-Newton matrix.
        has_weight: Whether the weight is a parameter.
        has_bias: Whether there is a bias that is a parameter.
        moves: Whether there are parameters upstream; otherwise ``u`` has no entries.
    """

    def __init__(
        self,
        name: str,
        shapes: tuple[Size, ...],
        W: Tensor,
        Z: Tensor,
        μ: Tensor,
        *,
        has_weight: bool,
        has_bias: bool,
        moves: bool,
    ) -> None:
        n, (m, w) = len(Z), W.shape
        ones = Z.new_ones(n, 1)
        self._Z = torch.cat([Z[:, : w * has_weight], ones[:, : int(has_bias)]], 1)
        self._V: Tensor
        self._V, R = torch.linalg.qr(self._Z.T)
        self._L: Tensor = R.T
        self._W = W if moves else W[:, :0]
        self._w = self._W.shape[1] * has_weight  # weights whose inputs move
        self._μ = μ if self._w else torch.zeros_like(μ)
        self._m, self._has_weight, self._has_bias = m, has_weight, has_bias
        self.name, self.shapes = name, shapes
        self.num_inputs = n * self._W.shape[1]

    def pack(self, blocks: Blocks) -> Tensor:
        """``X̄``, row by row."""
        rows = [b.reshape(len(b), self._m, -1) for b in blocks]
        return torch.cat(rows, 2).flatten(1)

    def unpack(self, x: Tensor) -> Blocks:
        """The inverse of :meth:`pack`."""
        X, w = self._X(x), self._Z.shape[1] - self._has_bias
        return [X[:, :, :w]] * self._has_weight + [X[:, :, w:].squeeze(2)] * self._has_bias

    # -------------------------------------------------------------- products

    def jvp(self, u: Tensor, x: Tensor) -> Tensor:
        """``W u + X̄ Z̄ᵀ``."""
        moved: Tensor = self._rows(u) @ self._W.T + (self._X(x) @ self._Z.T).mT
        return moved.flatten(1)

    def vjp(self, v: Tensor) -> Tensor:
        """``Wᵀ v``."""
        return (self._rows(v) @ self._W).flatten(1)

    def gradient(self, v: Tensor, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """``Wᵀv + μX`` and ``vᵀZ̄ + μᵀu``."""
        at_input = self._rows(v) @ self._W
        at_parameters = self._rows(v).mT @ self._Z
        if self._w:
            at_input += self._μ @ self._X(x)[:, :, : self._w]
            u = pad(self._rows(u), (0, self._Z.shape[1] - self._w))
            at_parameters.baddbmm_(self._μ.T.expand(len(u), -1, -1), u)
        return at_input.flatten(1), at_parameters.flatten(1)

    def congruence(self, P: Tensor) -> Tensor:
        """``Wᵀ P W``."""
        return self.vjp(self.vjp(P).T)

    # ------------------------------------------------------------ coordinates

    @property
    def num_coordinates(self) -> int:
        """``m r``."""
        return int(self._m * self._V.shape[1])

    def pivot(self, P: Tensor) -> tuple[Tensor, Tensor]:
        """``LᵀPL`` and ``S + LᵀPW``."""
        n, m = self._μ.shape
        LP = torch.einsum("nr,nipj->irpj", self._L, P.reshape(n, m, n, m))
        M = torch.einsum("irpj,ps->irjs", LP, self._L)
        G = LP @ self._W  # [i, r, n, j]
        if self._w:
            G += torch.einsum("ni,jr->irnj", self._μ, self._V[: self._w])
        size = self.num_coordinates
        return M.reshape(size, size), G.reshape(size, self.num_inputs)

    def vjp_coordinates(self, v: Tensor) -> Tensor:
        """``Lᵀ v``."""
        return (self._rows(v).mT @ self._L).flatten(1)

    def coordinates(self, x: Tensor) -> Tensor:
        """``X̄ V``."""
        return (self._X(x) @ self._V).flatten(1)

    def parameters(self, ξ: Tensor, unseen: Tensor | None) -> Tensor:
        """``Ξ Vᵀ``, and what ``unseen`` has in the null space."""
        Ξ = ξ.reshape(-1, self._V.shape[1])
        if unseen is None:
            return (Ξ @ self._V.T).reshape(len(ξ), -1)
        X = unseen.reshape(-1, len(self._V))
        return torch.addmm(X, Ξ - X @ self._V, self._V.T).reshape(len(ξ), -1)

    def null_space_pivot(self, damping: float, threshold: float) -> NullSpacePivot | None:
        """``X̄ (I − VVᵀ)``; empty if there are as many samples as inputs."""
        w_bar, r = self._V.shape
        if r == w_bar:
            return None
        pivot = NullSpacePivot(self._V, self._μ, self._w, damping, threshold)
        if damping == 0 and pivot.num_pivots:
            raise SingularSystemError(
                f"The matrix has a null space of {pivot.num_pivots} dimensions in "
                f"{self.name}: n = {len(self._Z)} rows are too few for its {w_bar} "
                "inputs. Choose a damping other than 0, or more data."
            )
        return pivot

    # ----------------------------------------------------------------- shapes

    def _X(self, x: Tensor) -> Tensor:
        """``X̄``: ``[K, p] -> [K, m, w̄]``."""
        return x.reshape(len(x), self._m, self._Z.shape[1])

    def _rows(self, v: Tensor) -> Tensor:
        """``[K, n·c] -> [K, n, c]``."""
        n = len(self._Z)
        return v.reshape(len(v), n, v.shape[1] // n)
