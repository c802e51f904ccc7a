"""The eigendecomposition of a block-diagonal of Kronecker products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Size, Tensor

from curvop.derivatives import leading, trailing
from curvop.kronecker.blocks import EigenBlock, eigh
from curvop.kronecker.factors import Factors
from curvop.operators import Blocks, LinearOperator, Space, TransposedLinearOperator


@dataclass(frozen=True)
class Eigendecomposition:
    """``A = V diag(λ) Vᵀ``, all of it.

    Attributes:
        values: ``λ``, ascending, ``[P]``.
        vectors: ``V``, an orthogonal operator whose columns belong to ``values``.
    """

    values: Tensor  # [P]
    vectors: LinearOperator  # [P, P]


def eigendecomposition(factors: Factors) -> Eigendecomposition:
    """From the eigendecompositions of the factors."""
    blocks = eigh(factors.blocks)
    flat = torch.cat([block.values.flatten() for block in blocks]).to(factors.dtype)
    values, order = flat.sort()
    return Eigendecomposition(values, EigenvectorsLinearOperator(factors, blocks, order))


@final
class EigenvectorsLinearOperator(LinearOperator):
    """``V``: Kronecker products of eigenvectors, in the order of the eigenvalues."""

    def __init__(
        self, factors: Factors, blocks: Sequence[EigenBlock], order: Tensor
    ) -> None:
        super().__init__(
            Space((Size((factors.space.dim,)),)),
            factors.space,
            dtype=factors.dtype,
            device=factors.device,
        )
        self._blocks = [block.map(lambda t: t.to(factors.dtype)) for block in blocks]
        self._order = order

    def _matmat(self, M: Blocks) -> Blocks:
        (x,) = leading(M)  # [K, P], in the order of the eigenvalues
        unsorted = torch.empty_like(x).index_copy_(1, self._order, x)
        parts = unsorted.split([block.values.numel() for block in self._blocks], 1)
        out: dict[int, Tensor] = {}
        for block, part in zip(self._blocks, parts, strict=True):
            X = block.rotate(part.reshape(-1, *block.values.shape), back=True)
            pieces = block.members.scatter(X)
            out |= dict(zip(block.members.positions, pieces, strict=True))
        return trailing([out[i] for i in range(len(out))])

    def _rmatmat(self, M: Blocks) -> Blocks:
        V = leading(M)
        flat = [
            block.rotate(block.members.gather(V), back=False).flatten(1)
            for block in self._blocks
        ]
        return trailing([torch.cat(flat, 1)[:, self._order]])

    def _transpose(self) -> LinearOperator:
        return TransposedLinearOperator(self, self._rmatmat)
