"""Stages: the second-order expansion of one layer, for block elimination.

With changes ``u`` of activations and ``x`` of parameters, the states and controls of a
linear-quadratic control problem,

    u_out = A u + B x,    cost ½ uᵀQu + xᵀSu + ½ xᵀRx ,

with ``A = ∂f/∂z``, ``B = ∂f/∂x``, and ``Q, S, R`` the second derivatives of ``λ·f`` for
the adjoint ``λ`` of the layer's output; zero for the Gauss-Newton matrix. Both are
flat, and ``K`` of them are the rows of a matrix: ``u [K, a]``, ``x [K, p]``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import torch
from torch import Size, Tensor

from curvop.direct.pivots import NullSpacePivot
from curvop.operators import Blocks


class Stage(ABC):
    """One layer, expanded to second order.

    Attributes:
        name: The name of the layer, for messages.
        shapes: Shapes of the parameters.
        num_inputs: ``a``, the entries of the input; 0 without parameters upstream.
    """

    name: str
    shapes: tuple[Size, ...]
    num_inputs: int

    @property
    def size(self) -> int:
        """``p``, the number of entries of the parameters."""
        return sum(shape.numel() for shape in self.shapes)

    @abstractmethod
    def jvp(self, u: Tensor, x: Tensor) -> Tensor:
        """``A u + B x``."""

    @abstractmethod
    def vjp(self, v: Tensor) -> Tensor:
        """``Aᵀ v``."""

    @abstractmethod
    def gradient(self, v: Tensor, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """``Aᵀv + Qu + Sᵀx`` and ``Bᵀv + Su + Rx``."""

    @abstractmethod
    def congruence(self, P: Tensor) -> Tensor:
        """``Q + Aᵀ P A``."""

    def pack(self, blocks: Blocks) -> Tensor:
        """``x`` from the parameters ``[K, *n_i]``."""
        return torch.cat([b.flatten(1) for b in blocks], 1)

    def unpack(self, x: Tensor) -> Blocks:
        """The parameters ``[K, *n_i]`` of ``x``."""
        parts = x.split([shape.numel() for shape in self.shapes], 1)
        return [b.reshape(-1, *shape) for b, shape in zip(parts, self.shapes, strict=True)]


class ParametricStage(Stage):
    """A stage with parameters, in orthonormal coordinates ``ξ`` of the row space of ``B``.

    The null space of ``B`` is treated apart; it may be empty.
    """

    @property
    @abstractmethod
    def num_coordinates(self) -> int:
        """Entries of ``ξ``."""

    @abstractmethod
    def pivot(self, P: Tensor) -> tuple[Tensor, Tensor]:
        """``R + BᵀPB`` and ``S + BᵀPA`` in the coordinates."""

    @abstractmethod
    def vjp_coordinates(self, v: Tensor) -> Tensor:
        """``Bᵀ v`` in the coordinates."""

    @abstractmethod
    def coordinates(self, x: Tensor) -> Tensor:
        """``ξ`` of ``x``."""

    @abstractmethod
    def parameters(self, ξ: Tensor, unseen: Tensor | None) -> Tensor:
        """The ``x`` with these coordinates, and what ``unseen`` has in the null space."""

    @abstractmethod
    def null_space_pivot(self, damping: float, threshold: float) -> NullSpacePivot | None:
        """The parameters in the null space of ``B``, to be eliminated with this damping."""


@final
class ElementwiseStage(Stage):
    """``f`` acts on each entry: ``A = diag(d)``, ``Q = diag(q)``."""

    def __init__(self, name: str, d: Tensor, q: Tensor) -> None:  # [a], [a]
        self.name, self.shapes, self.num_inputs = name, (), len(d)
        self._d, self._q = d, q

    def jvp(self, u: Tensor, x: Tensor) -> Tensor:
        """``d u``."""
        return u * self._d

    def vjp(self, v: Tensor) -> Tensor:
        """``d v``."""
        return v * self._d

    def gradient(self, v: Tensor, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """``d v + q u``."""
        return v * self._d + u * self._q, x

    def congruence(self, P: Tensor) -> Tensor:
        """``ddᵀ ⊙ P + diag(q)``."""
        return self._d[:, None] * P * self._d + self._q.diag()


@final
class DenseStage(ParametricStage):
    """Any layer, with its derivatives as matrices.

    Args:
        name: The name of the layer.
        shapes: Shapes of the parameters.
        J: Jacobian ``[A B]``.
        H: Hessian ``[[Q, Sᵀ], [S, R]]``.
    """

    def __init__(self, name: str, shapes: tuple[Size, ...], J: Tensor, H: Tensor) -> None:
        self.name, self.shapes = name, shapes
        self.num_inputs = a = J.shape[1] - self.size
        self._A, self._B = J[:, :a], J[:, a:]
        self._Q, self._S, self._R = H[:a, :a], H[a:, :a], H[a:, a:]

    @property
    def num_coordinates(self) -> int:
        """As many as parameters."""
        return self.size

    def jvp(self, u: Tensor, x: Tensor) -> Tensor:
        """``A u + B x``."""
        return u @ self._A.T + x @ self._B.T

    def vjp(self, v: Tensor) -> Tensor:
        """``Aᵀ v``."""
        return v @ self._A

    def gradient(self, v: Tensor, u: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """``Aᵀv + Qu + Sᵀx`` and ``Bᵀv + Su + Rx``."""
        Q, S, R = self._Q, self._S, self._R
        return self.vjp(v) + u @ Q + x @ S, v @ self._B + u @ S.T + x @ R

    def congruence(self, P: Tensor) -> Tensor:
        """``Q + Aᵀ P A``."""
        return self._Q + self._A.T @ P @ self._A

    def pivot(self, P: Tensor) -> tuple[Tensor, Tensor]:
        """``R + BᵀPB`` and ``S + BᵀPA``."""
        BtP = self._B.T @ P
        return self._R + BtP @ self._B, self._S + BtP @ self._A

    def vjp_coordinates(self, v: Tensor) -> Tensor:
        """``Bᵀ v``."""
        return v @ self._B

    def coordinates(self, x: Tensor) -> Tensor:
        """The parameters themselves."""
        return x

    def parameters(self, ξ: Tensor, unseen: Tensor | None) -> Tensor:
        """The coordinates themselves."""
        return ξ

    def null_space_pivot(self, damping: float, threshold: float) -> NullSpacePivot | None:
        """Empty."""
        return None
