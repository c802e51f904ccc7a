"""``V`` as an operator: columns kept, or derived anew at each product."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, final

import torch
from torch import Size, Tensor

from curvop.derivatives import leading, trailing
from curvop.linearized import Rows
from curvop.operators import (
    Blocks,
    LinearOperator,
    Space,
    TransposedLinearOperator,
)


class Source(NamedTuple):
    """Where some of the columns come from: kept, or derived anew each time."""

    num_columns: int
    rows: Callable[[], Rows]

    @staticmethod
    def kept(rows: Rows) -> Source:
        """In memory."""
        return Source(rows.N * rows.R, lambda: rows)


@final
class FactorColumnsLinearOperator(LinearOperator):
    """``V`` ``[P, R]`` with ``A = V Vᵀ``: see :attr:`GramFactor.V`.

    The columns follow the data: those of the first datum come first.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        space: Space,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        R = sum(source.num_columns for source in sources)
        super().__init__(Space((Size((R,)),)), space, dtype=dtype, device=device)
        self._sources = tuple(sources)

    def gram(self, other: FactorColumnsLinearOperator, dtype: torch.dtype) -> Tensor:
        """``Vᵀ V'``, ``[R, R']``, computed in this type."""
        K = torch.empty(self.shape[1], other.shape[1], dtype=dtype, device=self.device)
        same = other is self
        for rows, a in self._pieces():
            for cols, b in other._pieces(until=rows.stop if same else None):
                block = a.gram(a if same and rows == cols else b, dtype, self.device)
                K[rows, cols] = block
                if same:
                    K[cols, rows] = block.T
        return K

    def _pieces(self, until: int | None = None) -> Iterator[tuple[slice, Rows]]:
        """Positions and columns, one piece in memory at a time."""
        sizes = [source.num_columns for source in self._sources]
        starts = itertools.accumulate(sizes, initial=0)
        for source, start in zip(self._sources, starts, strict=False):
            if until is None or start < until:
                yield slice(start, start + source.num_columns), source.rows()

    def _matmat(self, M: Blocks) -> Blocks:
        (U,) = M
        sums: Blocks = []
        for rows, piece in self._pieces():
            part = piece.vjp(U[rows].view(piece.N, piece.R, -1), self.codomain)
            sums = [a + b for a, b in zip(sums, part, strict=True)] if sums else part
        return trailing(sums)

    def _rmatmat(self, M: Blocks) -> Blocks:
        V = leading(M)
        return [torch.cat([piece.jvp(V).flatten(0, 1) for _, piece in self._pieces()])]

    def _transpose(self) -> LinearOperator:
        return TransposedLinearOperator(self, self._rmatmat)
