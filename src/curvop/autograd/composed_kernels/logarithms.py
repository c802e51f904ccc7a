"""Logarithms of sums of exponentials."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def logaddexp(input: Tensor, other: Tensor, *, out: Tensor | None = None) -> Any:
    """``log(eᵃ + eᵇ)``; torch's second derivative is NaN where a and b are far apart."""
    if out is not None or input.is_complex():
        return NotImplemented
    return torch.stack(torch.broadcast_tensors(input, other)).logsumexp(0)


def logaddexp2(input: Tensor, other: Tensor, *, out: Tensor | None = None) -> Any:
    """``log₂(2ᵃ + 2ᵇ)``."""
    if out is not None:
        return NotImplemented
    both = torch.stack(torch.broadcast_tensors(input, other))
    return (math.log(2) * both).logsumexp(0) / math.log(2)


def logcumsumexp(input: Tensor, dim: int, *, out: Tensor | None = None) -> Any:
    """``log Σ_{j ≤ i} exp xⱼ``; torch's derivatives are NaN along a vector of zeros."""
    if out is not None or input.is_complex() or not input.ndim:
        return NotImplemented
    x = input.movedim(dim, -1)
    n = x.shape[-1]
    is_later = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1)
    parts = torch.where(is_later, -math.inf, x[..., None, :])
    return parts.logsumexp(-1).movedim(-1, dim)


COMPOSED: dict[Any, Callable[..., Any]] = {
    torch.logaddexp: logaddexp,
    Tensor.logaddexp: logaddexp,
    torch.logaddexp2: logaddexp2,
    Tensor.logaddexp2: logaddexp2,
    torch.logcumsumexp: logcumsumexp,
    Tensor.logcumsumexp: logcumsumexp,
}
