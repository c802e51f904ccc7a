"""Columns of ``V`` that belong to some of the data, parameter by parameter."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Size, Tensor

from curvop.lowrank.parts import Part, gram, joined
from curvop.operators import Blocks


@final
@dataclass(frozen=True)
class Piece:
    """Columns of ``V`` for ``N`` data with ``R`` columns each.

    Attributes:
        parts: The rows of each parameter; ``None`` where they are zero.
        N: Number of data.
        R: Columns of each.
    """

    parts: tuple[Part | None, ...]
    N: int
    R: int

    @property
    def nbytes(self) -> int:
        """Bytes that are kept."""
        tensors = [t for part in self.parts if part is not None for t in part.tensors]
        return sum(t.nbytes for t in tensors)

    def push(self, V: Blocks) -> Tensor:
        """``Vᵀ M`` for ``M`` ``[K, *n_i]``: ``[N·R, K]``, in the widest type."""
        total = torch.zeros((), dtype=V[0].dtype, device=V[0].device)
        total = total.expand(self.N, self.R, V[0].shape[0])
        for part, v in zip(self.parts, V, strict=True):
            if part is not None:
                total = total + part.push(v.to(part.tensors[-1].dtype))
        return total.flatten(0, 1)

    def pull(self, U: Tensor, shapes: Sequence[Size]) -> Blocks:
        """``V U`` for ``U`` ``[N·R, K]``: ``[K, *n_i]``."""
        U = U.view(self.N, self.R, -1)
        return [
            U.new_zeros(U.shape[2], *shape)
            if part is None
            else part.pull(U.to(part.tensors[-1].dtype)).to(U.dtype)
            for part, shape in zip(self.parts, shapes, strict=True)
        ]

    def gram(self, other: Piece, dtype: torch.dtype, device: torch.device) -> Tensor:
        """``Vᵀ V'``, ``[N·R, N'·R']``."""
        K = torch.zeros(self.N, self.R, other.N, other.R, dtype=dtype, device=device)
        for a, b in zip(self.parts, other.parts, strict=True):
            if a is not None and b is not None:
                K += gram(a, b, dtype)
        return K.flatten(2).flatten(0, 1)


class Source(NamedTuple):
    """Where the columns of a piece come from: kept, or derived anew each time."""

    num_columns: int
    piece: Callable[[], Piece]


def merged(pieces: Sequence[Piece]) -> list[Piece]:
    """Fewer and larger pieces with the same columns in the same order."""
    groups = [list(group) for _, group in itertools.groupby(pieces, _form)]
    return [
        Piece(
            tuple(
                None if parts[0] is None else joined(parts)
                for parts in zip(*(piece.parts for piece in group), strict=True)
            ),
            sum(piece.N for piece in group),
            group[0].R,
        )
        for group in groups
    ]


def _form(piece: Piece) -> Any:
    return piece.R, [None if part is None else part.form for part in piece.parts]
