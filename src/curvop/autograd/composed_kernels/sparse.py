"""Products with sparse matrices by dense ones, which have forward mode and vmap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _dense(product: Callable[..., Tensor]) -> Callable[..., Any]:
    """The product of the same matrices, stored densely, where the result is dense."""

    def multiply(*args: Any, **kwargs: Any) -> Any:
        matrices = [x for x in args if isinstance(x, Tensor)]
        is_sparse = [x.layout != torch.strided for x in matrices]
        if kwargs.keys() - _SCALARS or not any(is_sparse) or all(is_sparse[-2:]):
            return NotImplemented
        if len(matrices) < len(args):  # torch.sparse.mm with a reduction
            return NotImplemented
        dense = [x.to_dense() if s else x for x, s in zip(args, is_sparse, strict=True)]
        return product(*dense, **kwargs)

    return multiply


_SCALARS = {"alpha", "beta"}  # of addmm

COMPOSED: dict[Any, Callable[..., Any]] = {
    torch.sparse.mm: _dense(torch.mm),
    torch.sparse.addmm: _dense(torch.addmm),
    torch.addmm: _dense(torch.addmm),
    torch.mm: _dense(torch.mm),
    torch.mv: _dense(torch.mv),
    torch.matmul: _dense(torch.matmul),
    torch.spmm: _dense(torch.mm),
    torch.dsmm: _dense(torch.mm),
    torch.hspmm: _dense(torch.mm),
    Tensor.mm: _dense(torch.mm),
    Tensor.mv: _dense(torch.mv),
    Tensor.matmul: _dense(torch.matmul),
    Tensor.__matmul__: _dense(torch.matmul),
}
