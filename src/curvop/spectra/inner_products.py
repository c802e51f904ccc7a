"""Inner products and norms of long vectors.

In single precision a BLAS sums millions of numbers with an error far above rounding (1e-3
at five million, measured). Parts are summed by it, and their sums in double precision.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from curvop.scaling import unit

PART = 2**12


def inner_products(V: Tensor, w: Tensor) -> Tensor:
    """``V w`` for rows ``V [m, N]`` as ``[m]``, in double precision."""
    if _is_exact(w):
        return (V @ w).double()
    pairs = zip(V.split(PART, 1), w.split(PART), strict=True)
    return torch.stack([v @ part for v, part in pairs]).double().sum(0)


def inner_product(v: Tensor, w: Tensor) -> float:
    """``vᵀ w``."""
    return float(inner_products(v[None], w))


def norm(w: Tensor) -> float:
    """``‖w‖``."""
    size, limits = _norm(w), torch.finfo(w.dtype)
    # no square has over- or underflown, except for those far below rounding
    if limits.tiny**0.5 / limits.eps < size < math.inf:
        return size
    power = unit(w)
    return _norm(w / power) * float(power)


def _norm(w: Tensor) -> float:
    if _is_exact(w):
        return float(torch.linalg.vector_norm(w))
    parts = torch.stack([torch.linalg.vector_norm(part) for part in w.split(PART)])
    return float(torch.linalg.vector_norm(parts.double()))


def _is_exact(w: Tensor) -> bool:
    # a GPU sums in a tree
    return w.dtype == torch.float64 or len(w) <= PART or w.device.type != "cpu"
