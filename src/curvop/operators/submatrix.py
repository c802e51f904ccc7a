"""Rows and columns of an operator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy
import torch
from torch import Size, Tensor

from curvop.operators.algebra import reshape
from curvop.operators.base import LinearOperator
from curvop.operators.layout import Blocks, Space


class SubmatrixLinearOperator(LinearOperator):
    """``A[rows, cols] = Rᵀ A C`` with selections ``R`` and ``C`` of unit vectors."""

    def __init__(self, A: LinearOperator, rows: Tensor, cols: Tensor) -> None:
        same = rows.shape == cols.shape and bool((rows == cols).all())
        super().__init__(
            Space((cols.shape,)),
            Space((rows.shape,)),
            dtype=A.dtype,
            device=A.device,
            symmetric=A.symmetric and same,
            psd=A.psd and same,
        )
        self._A = A
        self._rows = rows
        self._cols = cols

    def _matmat(self, M: Blocks) -> Blocks:
        (v,) = M
        A = self._A
        # index_add_: a column may be selected twice; K leads, as curvature wants it
        full = v.new_zeros(v.shape[1], A.shape[1]).index_add_(1, self._cols, v.T)
        out = A._matmat(reshape([full.T], A._domain))
        (flat,) = reshape(out, Space((Size((A.shape[0],)),)))
        return [flat[self._rows]]

    def _transpose(self) -> LinearOperator:
        return SubmatrixLinearOperator(self._A.T, self._cols, self._rows)


def submatrix(A: LinearOperator, index: Any) -> LinearOperator | Tensor:
    """``A[rows, cols]``; an integer drops its axis.

    Raises:
        TypeError: If an index is of an unknown kind.
        IndexError: If an index is out of range, or there are more than two.
        ValueError: If a mask has the wrong length or a name is unknown.
    """
    rows, cols, *more = index if isinstance(index, tuple) else (index, slice(None))
    if more:
        raise IndexError(f"Expected one or two indices, got {2 + len(more)}.")
    i = _positions(rows, A._codomain, A.device)
    j = _positions(cols, A._domain, A.device)
    drop_row, drop_col = _is_integer(rows), _is_integer(cols)
    sub = SubmatrixLinearOperator(A, i, j)
    if not drop_row and not drop_col:
        return sub
    one = torch.ones(1, dtype=A.dtype, device=A.device)
    vector: Tensor = sub @ one if drop_col else one @ sub
    return vector[0] if drop_row and drop_col else vector


def _is_integer(index: Any) -> bool:
    if isinstance(index, bool):
        return False
    if isinstance(index, Tensor):
        return index.ndim == 0 and index.dtype not in (torch.bool,)
    return hasattr(index, "__index__") and getattr(index, "ndim", 0) == 0


def _positions(index: Any, space: Space, device: torch.device) -> Tensor:
    """Flat positions that an index selects, as ``int64`` on ``device``."""
    N = space.dim
    if isinstance(index, str):
        index = space.index(index)
    if isinstance(index, slice):
        return torch.tensor(range(N)[index], dtype=torch.int64, device=device)
    if isinstance(index, Sequence) and index and isinstance(index[0], str):
        return torch.cat([_positions(name, space, device) for name in index])
    if isinstance(index, numpy.ndarray):
        index = index.copy()  # torch knows no negative strides
    try:
        where = torch.as_tensor(index, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            "Expected an integer, slice, mask, list of positions or parameter names as "
            f"index, got {type(index).__name__}."
        ) from error
    if where.numel() == 0 and where.dtype != torch.bool:
        where = where.long()
    if where.ndim == 0:
        where = where[None]
    if where.ndim != 1 or where.is_floating_point() or where.is_complex():
        raise TypeError(
            "Expected one-dimensional integer positions or a boolean mask, got "
            f"{where.dtype} of shape {tuple(where.shape)}."
        )
    if where.dtype == torch.bool:
        if where.shape[0] != N:
            raise ValueError(f"Expected a mask of length {N}, got {where.shape[0]}.")
        return where.nonzero()[:, 0]
    where = where.long()
    if bool(((where < -N) | (where >= N)).any()):
        raise IndexError(f"Expected positions in [-{N}, {N}), got {where.tolist()}.")
    return where % N
