"""Older functions of torch's linear algebra, composed of the newer ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def cholesky(input: Tensor, upper: bool = False, *, out: Tensor | None = None) -> Any:
    """``torch.cholesky``, which has no forward mode."""
    return torch.linalg.cholesky(input, upper=upper, out=out)


def cholesky_inverse(L: Tensor, upper: bool = False, *, out: Tensor | None = None) -> Any:
    """``(L Lᵀ)⁻¹``; the forward mode of ``torch.cholesky_inverse`` is wrong."""
    identity = torch.eye(L.shape[-1], dtype=L.dtype, device=L.device).expand_as(L)
    return torch.cholesky_solve(identity, L, upper, out=out)


def triangular_solve(
    b: Tensor,
    A: Tensor,
    upper: bool = True,
    transpose: bool = False,
    unitriangular: bool = False,
    *,
    out: Any = None,
) -> Any:
    """``A⁻¹ b`` and a copy of ``A``, whose forward mode is wrong in torch."""
    if out is not None:
        return NotImplemented
    matrix, is_upper = (A.mT, not upper) if transpose else (A, upper)
    x = torch.linalg.solve_triangular(
        matrix, b, upper=is_upper, unitriangular=unitriangular
    )
    return torch.return_types.triangular_solve((x, A.clone()))


COMPOSED: dict[Any, Callable[..., Any]] = {
    torch.cholesky: cholesky,
    Tensor.cholesky: cholesky,
    torch.cholesky_inverse: cholesky_inverse,
    Tensor.cholesky_inverse: cholesky_inverse,
    torch.triangular_solve: triangular_solve,
    Tensor.triangular_solve: triangular_solve,
}
