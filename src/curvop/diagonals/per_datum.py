"""The diagonal from the rows of each datum, for any parameters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from curvop.curvature import CurvatureLinearOperator
from curvop.derivatives import chunks
from curvop.diagonals.output_columns import OutputColumns, columns_at_once, squares
from curvop.diagonals.ways import WrongDiagonalError
from curvop.linearized import leads, rows_by_passes, rows_by_vmap
from curvop.operators import Blocks
from curvop.risk import nested

# Rows of several data and columns are held up to so many numbers.
NUMBERS = 2**22


def vectorised(
    A: CurvatureLinearOperator, some: Sequence[int], X: Any, S: OutputColumns
) -> Blocks:
    """``Σ_n Σ_r σ (J_nᵀ s_{n,r})²`` for some parameters, by vmap over data and columns.

    Raises:
        WrongDiagonalError: If the data cannot be taken one by one.
    """
    _check_leading(X, S.N)
    at = A.risk.parameters
    if not at.functional:
        raise WrongDiagonalError("a closure cannot be vectorised")
    columns = columns_at_once(A, X, S.count)
    numbers = sum(at.tensors[i].numel() for i in some)
    at_once = max(1, NUMBERS // max(1, numbers * columns))
    sums = _zeros(A, some)
    for which in chunks(S.count, columns):
        s, signs = S(which)
        rows = rows_by_vmap(at, X, s, some, at_once)
        for data, J in zip(chunks(S.N, at_once), rows, strict=True):
            _add(sums, J, None if signs is None else signs[:, data].T.flatten())
    return sums


def rows_of_batch(
    A: CurvatureLinearOperator,
    some: Sequence[int],
    X: Any,
    S: OutputColumns,
    *,
    alone: bool = False,
) -> Blocks:
    """The same by passes, through the graph of the whole batch: its data may be coupled.

    Args:
        A: The matrix.
        some: Positions of the parameters.
        X: Inputs.
        S: Columns over the outputs.
        alone: Each datum through a graph of its own.

    Raises:
        WrongDiagonalError: If the data cannot be taken one by one, and should be.
    """
    if alone:
        _check_leading(X, S.N)
    sums = _zeros(A, some)
    for data in chunks(S.N, 1 if alone else S.N):
        with torch.enable_grad(), A.risk.parameters.leaves() as params:
            out = nested.differentiable(A.risk.predict(params, _only(X, S.N, data)))
            mine, these = [params[i] for i in some], range(S.N)[data]
            for which in chunks(S.count, 1):
                s, signs = S(which)
                J = rows_by_passes(out, mine, s[:, data], range(len(these)))
                for n, g in zip(these, J, strict=True):
                    row = [t[None, None] for t in g]
                    _add(sums, row, None if signs is None else signs[:, n])
    return sums


one_by_one = partial(rows_of_batch, alone=True)


def _add(sums: Blocks, rows: Blocks, signs: Tensor | None) -> None:
    """Add the squares of rows ``[N, R, *n_i]``, with the signs of each."""
    for total, J in zip(sums, rows, strict=True):
        total += squares(J.flatten(0, 1), signs)


def _only(X: Any, N: int, data: slice) -> Any:
    return nested.map_tensors(lambda t: t[data] if leads(t, N) else t, X)


def _check_leading(X: Any, N: int) -> None:
    if not any(leads(t, N) for t in nested.tensors(X)):
        raise WrongDiagonalError("no input has the data leading")


def _zeros(A: CurvatureLinearOperator, some: Sequence[int]) -> Blocks:
    tensors = [A.risk.parameters.tensors[i].detach() for i in some]
    wide = [torch.promote_types(p.dtype, torch.float32) for p in tensors]
    return [torch.zeros_like(p, dtype=d) for p, d in zip(tensors, wide, strict=True)]
