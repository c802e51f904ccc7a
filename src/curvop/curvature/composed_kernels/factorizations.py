"""What torch's older names of factorisations compute, by the newer ones."""

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


COMPOSED: dict[Any, Callable[..., Any]] = {
    torch.cholesky: cholesky,
    Tensor.cholesky: cholesky,
    torch.cholesky_inverse: cholesky_inverse,
    Tensor.cholesky_inverse: cholesky_inverse,
}
