"""Probes: random vectors, their products and quadratic forms."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor

from curvop.operators import LinearOperator

# Rounding errors of a product and a sum, in units of eps times the sum of magnitudes.
ROUNDING = 8


def working_dtype(A: LinearOperator) -> torch.dtype:
    """The dtype of the matrix; single precision for half, which has no factorisations."""
    return torch.promote_types(A.dtype, torch.float32)


def multiply(A: LinearOperator, V: Tensor, before: int) -> Tensor:
    """``A @ V`` in the dtype of ``V``, checked.

    Args:
        A: The matrix.
        V: Columns ``[N, K]`` in working precision.
        before: Number of products before these.

    Raises:
        ValueError: If a product is not finite.
    """
    AV: Tensor = (A @ V.to(A.dtype)).detach()
    finite = AV.isfinite().all(0)
    if not finite.all():
        raise ValueError(
            "Expected finite products, got nan or inf in product "
            f"{before + int(finite.logical_not().nonzero()[0]) + 1}. Look for what "
            "overflows in the operator."
        )
    return AV.to(V.dtype)


def probes(
    kind: Literal["signs", "normal"], A: LinearOperator, K: int, generator: Generator
) -> Tensor:
    """Columns ``[N, K]`` with independent entries of mean 0 and variance 1.

    They are drawn column by column, so that they do not depend on the chunks.
    """
    N, device = A.shape[1], generator.device
    if kind == "signs":
        columns = [
            torch.randint(0, 2, (N,), generator=generator, device=device) * 2 - 1
            for _ in range(K)
        ]
    else:
        dtype = working_dtype(A)
        columns = [
            torch.randn(N, generator=generator, device=device, dtype=dtype)
            for _ in range(K)
        ]
    return torch.stack(columns, 1).to(A.device, working_dtype(A))


def quadratic_forms(V: Tensor, AV: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``vᵀ A v`` of each column, and its rounding errors: ``[K]``, on the CPU."""
    terms = V * AV
    values, sizes = (t.sum(0).to("cpu", torch.float64) for t in (terms, terms.abs()))
    return values, ROUNDING * torch.finfo(dtype).eps * sizes
