"""Reductions of the entries that are written to the same index."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def scatter_reduce(
    input: Tensor,
    dim: int,
    index: Tensor,
    src: Tensor,
    reduce: str,
    *,
    include_self: bool = True,
) -> Any:
    """Products one factor after the other; the forward mode of torch's is wrong."""
    if reduce != "prod" or not index.ndim:
        return NotImplemented
    out = input if include_self else input.scatter(dim, index, 1)
    for k in range(index.shape[dim]):
        where = index.narrow(dim, k, 1)
        factor = src.narrow(dim, k, 1)[tuple(slice(n) for n in where.shape)]
        out = out.scatter(dim, where, out.gather(dim, where) * factor)
    return out


def index_reduce(
    input: Tensor,
    dim: int,
    index: Tensor,
    source: Tensor,
    reduce: str,
    *,
    include_self: bool = True,
) -> Any:
    """By ``scatter_reduce``; torch's own has no forward mode."""
    shape = [1] * source.ndim
    if not shape:
        return NotImplemented
    shape[dim] = -1
    where = index.view(shape).expand_as(source)
    args = (input, dim, where, source, reduce)
    out = scatter_reduce(*args, include_self=include_self)
    if out is NotImplemented:
        return torch.scatter_reduce(*args, include_self=include_self)
    return out


COMPOSED: dict[Any, Callable[..., Any]] = {
    torch.scatter_reduce: scatter_reduce,
    Tensor.scatter_reduce: scatter_reduce,
    torch.index_reduce: index_reduce,
    Tensor.index_reduce: index_reduce,
}
