"""The diagonal from the gradients of each datum, for any parameters."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vjp, vmap

from curvop.autograd import pullback
from curvop.curvature import CurvatureLinearOperator
from curvop.derivatives import chunks
from curvop.diagonals.output_columns import (
    OutputColumns,
    as_outputs,
    columns_at_once,
    squares,
)
from curvop.diagonals.ways import WrongDiagonalError, leads
from curvop.operators import Blocks
from curvop.risk import constant, nested

# Gradients of several data and columns are held up to so many numbers.
NUMBERS = 2**22


def vectorised(
    A: CurvatureLinearOperator, some: Sequence[int], X: Any, S: OutputColumns
) -> Blocks:
    """``Σ_n Σ_r σ (J_nᵀ s_{n,r})²`` for some parameters, by vmap over data and columns.

    Raises:
        WrongDiagonalError: If the data cannot be taken one by one.
    """
    data = [t for t in nested.tensors(X) if leads(t, S.N)]
    if not data:
        raise WrongDiagonalError("no input has the data leading")
    if not A.risk.parameters.functional:
        raise WrongDiagonalError("a closure cannot be vectorised")
    values = [constant(p) for p in A.risk.parameters.tensors]
    numbers = sum(values[i].numel() for i in some)
    columns = columns_at_once(A, X, S.count)
    at_once = max(1, NUMBERS // max(1, numbers * columns))

    def of_datum(s: Tensor, *datum: Tensor) -> tuple[Tensor, ...]:
        def outputs(*p: Tensor) -> tuple[Tensor, ...]:
            parts = iter(datum)
            x = nested.map_tensors(lambda t: next(parts)[None] if leads(t, S.N) else t, X)
            full = list(values)
            for i, q in zip(some, p, strict=True):
                full[i] = q
            return nested.differentiable(A.risk.predict(full, x))

        out, pull = vjp(outputs, *(values[i] for i in some))  # type: ignore[misc]
        J = vmap(lambda s: pull(tuple(o[0] for o in as_outputs(s[None, None], out))))(s)
        return tuple(J)

    sums = [_zeros(values[i]) for i in some]
    with torch.no_grad():
        for which in chunks(S.count, columns):
            s, signs = S(which)
            for n in range(0, S.N, at_once):
                rows = slice(n, n + at_once)
                J = vmap(of_datum, in_dims=(1, *(0 for _ in data)))(
                    s[:, rows], *(t[rows] for t in data)
                )
                for total, g in zip(sums, J, strict=True):
                    some_signs = None if signs is None else signs[:, rows].T.flatten()
                    total += squares(g.flatten(0, 1), some_signs)
    return sums


def one_by_one(
    A: CurvatureLinearOperator, some: Sequence[int], X: Any, S: OutputColumns
) -> Blocks:
    """The same by plain autograd, a datum and a column at a time.

    Raises:
        WrongDiagonalError: If the data cannot be taken one by one.
    """
    if not any(leads(t, S.N) for t in nested.tensors(X)):
        raise WrongDiagonalError("no input has the data leading")
    sums = [_zeros(A.risk.parameters.tensors[i]) for i in some]
    for n in range(S.N):
        x = nested.map_tensors(partial(_only, n=n, N=S.N), X)
        with torch.enable_grad(), A.risk.parameters.leaves() as params:
            out = nested.differentiable(A.risk.predict(params, x))
            for which in chunks(S.count, 1):
                s, signs = S(which)
                sign = None if signs is None else signs[:, n]
                u = as_outputs(s[:, n : n + 1], out)
                _add(sums, out, [params[i] for i in some], u, sign)
    return sums


def rows_of_batch(
    A: CurvatureLinearOperator, some: Sequence[int], X: Any, S: OutputColumns
) -> Blocks:
    """The same through the graph of the whole batch, whose data may be coupled."""
    sums = [_zeros(A.risk.parameters.tensors[i]) for i in some]
    with torch.enable_grad(), A.risk.parameters.leaves() as params:
        out = nested.differentiable(A.risk.predict(params, X))
        for which in chunks(S.count, 1):
            s, signs = S(which)
            for n in range(S.N):
                alone = torch.zeros_like(s)
                alone[:, n] = s[:, n]
                sign = None if signs is None else signs[:, n]
                u = as_outputs(alone, out)
                _add(sums, out, [params[i] for i in some], u, sign)
    return sums


def _add(
    sums: Blocks,
    out: Sequence[Tensor],
    params: Sequence[Tensor],
    u: Sequence[Tensor],
    sign: Tensor | None,
) -> None:
    """Add the squares of one gradient."""
    J = pullback(out, params, [c[0] for c in u], create_graph=False, keep=True)
    for total, g in zip(sums, J, strict=True):
        total += squares(g[None], sign)


def _only(t: Tensor, n: int, N: int) -> Tensor:
    return t[n : n + 1] if leads(t, N) else t


def _zeros(p: Tensor) -> Tensor:
    return torch.zeros_like(
        p, dtype=torch.promote_types(p.dtype, torch.float32), requires_grad=False
    )
