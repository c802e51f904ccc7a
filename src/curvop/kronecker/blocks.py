"""A diagonal block of the matrix: a Kronecker product, or one in its eigenbasis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Size, Tensor

from curvop.operators import Blocks

Factor = Tensor | None  # [G, n, n]; a diagonal [G, n]; None for the identity
Known = dict[int, tuple[Tensor, Tensor]]  # factors that have been decomposed, by their id


@dataclass(frozen=True)
class Members:
    """The parameters of a block, side by side as the columns of ``G`` matrices ``[a, n]``.

    A weight ``[G a, *d]`` has as many columns as ``d`` has entries, a bias one.

    Attributes:
        positions: Which of the parameters.
        shapes: Their shapes.
        groups: ``G``: more than one for grouped convolutions.
        rows: ``a``.
    """

    positions: tuple[int, ...]
    shapes: tuple[Size, ...]
    groups: int
    rows: int

    @property
    def columns(self) -> list[int]:
        """Number of columns of each."""
        return [s.numel() // (self.groups * self.rows) for s in self.shapes]

    @property
    def dim(self) -> int:
        """Number of entries."""
        return sum(s.numel() for s in self.shapes)

    def gather(self, V: Sequence[Tensor]) -> Tensor:
        """Their parts of ``[K, *n_i]``, as ``[K, G, a, n]``."""
        K, G, a = V[0].shape[0], self.groups, self.rows
        parts = [V[i].reshape(K, G, a, -1) for i in self.positions]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def scatter(self, X: Tensor) -> list[Tensor]:
        """``[K, G, a, n]`` in the shapes of the parameters, ``[K, *n_i]`` each."""
        parts = [X] if len(self.shapes) == 1 else X.split(self.columns, -1)
        return [p.reshape(-1, *s) for p, s in zip(parts, self.shapes, strict=True)]


@final
@dataclass(frozen=True)
class KroneckerBlock:
    """``L ⊗ R`` for each group: ``X -> L X R``.

    Attributes:
        members: Its parameters.
        left: ``L``, symmetric positive semi-definite ``[G, a, a]``.
        right: ``R``, the same ``[G, n, n]``.
    """

    members: Members
    left: Factor
    right: Factor

    def multiply(self, X: Tensor) -> Tensor:
        """``[K, G, a, n] -> [K, G, a, n]``."""
        return apply_left(self.left, apply_right(X, self.right))

    def eigh(self, known: Known) -> EigenBlock:
        """The eigendecompositions of both factors."""
        G, a, n = self.members.groups, self.members.rows, sum(self.members.columns)
        like = self.left if self.left is not None else self.right
        assert like is not None
        Q, left = _eigh(self.left, like.new_ones(G, a), known)
        U, right = _eigh(self.right, like.new_ones(G, n), known)
        return EigenBlock(self.members, Q, U, left[:, :, None] * right[:, None, :])

    def trace(self) -> Tensor:
        """``tr L tr R``."""
        return (self._diagonal(0).sum(-1) * self._diagonal(1).sum(-1)).sum()

    def norm_squared(self) -> Tensor:
        """``‖L‖² ‖R‖²``."""
        sizes = (self.members.rows, sum(self.members.columns))
        left, right = (
            float(size) if F is None else F.flatten(1).square().sum(-1)
            for F, size in zip((self.left, self.right), sizes, strict=True)
        )
        return torch.as_tensor(left * right).sum()

    def diagonal(self) -> Tensor:
        """``[G, a, n]``."""
        return self._diagonal(0)[:, :, None] * self._diagonal(1)[:, None, :]

    def _diagonal(self, side: int) -> Tensor:
        factor, other = (self.left, self.right)[:: 1 - 2 * side]
        if factor is None:
            assert other is not None
            size = (self.members.rows, sum(self.members.columns))[side]
            return other.new_ones(self.members.groups, size)
        return factor if factor.ndim == 2 else factor.diagonal(dim1=-2, dim2=-1)

    def map(self, fn: Callable[[Tensor], Tensor]) -> KroneckerBlock:
        """``fn`` of each factor."""
        left, right = (None if F is None else fn(F) for F in (self.left, self.right))
        return replace(self, left=left, right=right)


@final
@dataclass(frozen=True)
class EigenBlock:
    """``(Q ⊗ U) diag(λ) (Q ⊗ U)ᵀ`` for each group: ``X -> Q (λ ∘ Qᵀ X U) Uᵀ``.

    Attributes:
        members: Its parameters.
        left: ``Q``, orthogonal ``[G, a, a]``; ``None`` for the identity.
        right: ``U``, orthogonal ``[G, n, n]``; ``None`` for the identity.
        values: ``λ``, ``[G, a, n]``.
    """

    members: Members
    left: Factor
    right: Factor
    values: Tensor

    def multiply(self, X: Tensor) -> Tensor:
        """``[K, G, a, n] -> [K, G, a, n]``."""
        return self.rotate(self.rotate(X, back=False) * self.values, back=True)

    def rotate(self, X: Tensor, *, back: bool) -> Tensor:
        """``Qᵀ X U``, or back: ``Q X Uᵀ``."""
        Q, U = self.left, self.right
        if back:
            return apply_left(Q, apply_right(X, None if U is None else U.mT))
        return apply_left(None if Q is None else Q.mT, apply_right(X, U))

    def eigh(self, known: Known) -> EigenBlock:
        """Itself."""
        return self

    def trace(self) -> Tensor:
        """``Σ λ``."""
        return self.values.sum()

    def norm_squared(self) -> Tensor:
        """``Σ λ²``."""
        return self.values.square().sum()

    def map(self, fn: Callable[[Tensor], Tensor]) -> EigenBlock:
        """``fn`` of each tensor."""
        left, right = (None if F is None else fn(F) for F in (self.left, self.right))
        return replace(self, left=left, right=right, values=fn(self.values))


Block = KroneckerBlock | EigenBlock


def apply_left(L: Factor, X: Tensor) -> Tensor:
    """``L X``, ``[K, G, a, n]``."""
    if L is None:
        return X
    if L.ndim == 2:
        return L[:, :, None] * X
    K, G, a, n = X.shape
    if G > 1:
        return L @ X
    if n == 1:  # vectors: one product for all columns
        return (X.reshape(K, a) @ L[0].mT).reshape(X.shape)
    if K == 1:
        return (L[0] @ X[0, 0]).reshape(X.shape)
    return L @ X


def apply_right(X: Tensor, R: Factor) -> Tensor:
    """``X R``, ``[K, G, a, n]``."""
    if R is None:
        return X
    if R.ndim == 2:
        return X * R[:, None, :]
    K, G, a, n = X.shape
    return X @ R if G > 1 else (X.reshape(K * a, n) @ R[0]).reshape(X.shape)


def eigh(blocks: Sequence[Block]) -> list[EigenBlock]:
    """Each block in its eigenbasis; a factor that several share is decomposed once."""
    known: Known = {}
    return [block.eigh(known) for block in blocks]


def _eigh(factor: Factor, ones: Tensor, known: Known) -> tuple[Factor, Tensor]:
    """Eigenvectors and eigenvalues ``[G, n]``, none of them negative."""
    if factor is None:
        return None, ones
    if factor.ndim == 2:
        return None, factor
    if id(factor) not in known:
        values, Q = torch.linalg.eigh(factor)
        known[id(factor)] = Q.contiguous(), values.clamp_min(0)
    return known[id(factor)]


def multiply(blocks: Sequence[Block], V: Blocks) -> Blocks:
    """The block-diagonal onto ``[K, *n_i]``."""
    return per_block(blocks, V, lambda block, X: block.multiply(X))


def per_block(
    blocks: Sequence[Any], V: Blocks, fn: Callable[[Any, Tensor], Tensor]
) -> Blocks:
    """``fn`` of each block and its part of ``[K, *n_i]``, which keeps its shape."""
    out: dict[int, Tensor] = {}
    for block in blocks:
        parts = block.members.scatter(fn(block, block.members.gather(V)))
        out |= dict(zip(block.members.positions, parts, strict=True))
    return [out[i] for i in range(len(V))]
