"""Norms, distances and normalisations.

Torch's kernels of distances have no second derivative, that of ``_weight_norm`` has a
wrong one, and those of norms are NaN at the zero vector. There all derivatives are zero
here: that is autograd's convention for the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Dims = int | Sequence[int] | None


def root(s: Tensor, p: float) -> Tensor:
    """``s^(1/p)``, with all derivatives zero at ``s = 0``."""
    is_zero = s == 0
    positive = torch.where(is_zero, 1, s)
    out = positive.sqrt() if p == 2 else positive ** (1 / p)
    return torch.where(is_zero, 0, out)


def power(x: Tensor, p: float) -> Tensor:
    """``|x|ᵖ``, with all derivatives zero at ``x = 0``."""
    if p == 2:
        return x * x
    is_zero = x == 0
    return torch.where(is_zero, 0, torch.where(is_zero, 1, x).abs() ** p)


def vector_norm(
    x: Tensor,
    ord: float = 2,
    dim: Dims = None,
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Any:
    """``(Σ |xᵢ|ᵖ)^(1/p)``, as ``torch.linalg.vector_norm``."""
    has_own = ord <= 0 or ord in (1, math.inf)  # torch's are right
    if out is not None or has_own or not x.is_floating_point() or x.is_sparse:
        return NotImplemented
    x = x if dtype is None else x.to(dtype)
    dims: Any = tuple(range(x.ndim)) if dim is None else dim
    return root(power(x, ord).sum(dims, keepdim=keepdim), ord)


def norm(
    input: Tensor,
    p: float | str | None = "fro",
    dim: Dims = None,
    keepdim: bool = False,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Any:
    """The norm of a vector, as ``torch.norm``."""
    if p is None or (isinstance(p, str) and p != "fro"):
        return NotImplemented
    ord = 2.0 if isinstance(p, str) else float(p)
    return vector_norm(input, ord, dim, keepdim, dtype=dtype, out=out)


def norm_method(
    self: Tensor,
    p: float | str | None = "fro",
    dim: Dims = None,
    keepdim: bool = False,
    dtype: torch.dtype | None = None,
) -> Any:
    """The norm of a vector, as ``Tensor.norm``."""
    return norm(self, p, dim, keepdim, dtype=dtype)


def linalg_norm(
    A: Tensor,
    ord: float | str | None = None,
    dim: Dims = None,
    keepdim: bool = False,
    *,
    out: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Any:
    """Norms of vectors, and the Frobenius norm, as ``torch.linalg.norm``."""
    axes = A.ndim if dim is None else 1 if isinstance(dim, int) else len(dim)
    if ord in (None, "fro"):
        return vector_norm(A, 2, dim, keepdim, dtype=dtype, out=out)
    if isinstance(ord, str) or axes != 1:
        return NotImplemented
    return vector_norm(A, ord, dim, keepdim, dtype=dtype, out=out)


def matrix_norm(
    A: Tensor,
    ord: float | str = "fro",
    dim: Dims = (-2, -1),
    keepdim: bool = False,
    *,
    dtype: torch.dtype | None = None,
    out: Tensor | None = None,
) -> Any:
    """The Frobenius norm, as ``torch.linalg.matrix_norm``."""
    if ord != "fro":
        return NotImplemented
    return vector_norm(A, 2, dim, keepdim, dtype=dtype, out=out)


def norm_except_dim(v: Tensor, pow: int = 2, dim: int = 0) -> Any:
    """The norm over all axes but one; over all of them for ``dim=-1``."""
    if pow != 2:
        return NotImplemented
    others = None if dim == -1 else [d for d in range(v.ndim) if d != dim]
    if others == []:  # torch takes an empty list of axes for all of them
        return root(power(v, 2), 2)
    return vector_norm(v, 2, others, keepdim=dim != -1)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Any:
    """``g v / ‖v‖``."""
    return v * (g / norm_except_dim(v, 2, dim))


def weight_norm_interface(v: Tensor, g: Tensor, dim: int = 0) -> Any:
    """``g v / ‖v‖``, and ``‖v‖``, which is a constant to autograd."""
    return weight_norm(v, g, dim), norm_except_dim(v, 2, dim).detach()


def distance(difference: Tensor, p: float) -> Any:
    """Norms of the rows, with the slopes of torch's kernels of distances."""
    if p == 1:
        return difference.abs().sum(-1)
    if p != math.inf:
        return vector_norm(difference, p, -1)
    if not difference.shape[-1]:
        return NotImplemented
    size = difference.abs()
    largest = size.amax(-1, keepdim=True)
    # each of several largest entries counts in full for the slope
    ties = torch.where(size == largest, size, 0).sum(-1)
    return ties - (ties - largest[..., 0]).detach()


def cdist(
    x1: Tensor,  # [..., P, M]
    x2: Tensor,  # [..., R, M]
    p: float = 2.0,
    compute_mode: str = "use_mm_for_euclid_dist_if_necessary",
) -> Any:
    """``‖xᵢ − yⱼ‖``, ``[..., P, R]``, as ``torch.cdist``."""
    return distance(x1[..., :, None, :] - x2[..., None, :, :], p)


def pdist(input: Tensor, p: float = 2) -> Any:
    """``‖xᵢ − xⱼ‖`` for ``i < j``, as ``F.pdist``."""
    i, j = torch.triu_indices(len(input), len(input), 1, device=input.device)
    return distance(input[i] - input[j], p)


def pairwise_distance(
    x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Any:
    """``‖x − y + ε‖`` of rows, as ``F.pairwise_distance``."""
    return vector_norm(x1 - x2 + eps, p, -1, keepdim)


def dist(input: Tensor, other: Tensor, p: float = 2) -> Any:
    """``‖x − y‖``, as ``torch.dist``."""
    return vector_norm(input - other, p)


def normalize(
    input: Tensor, p: float = 2.0, dim: int = 1, eps: float = 1e-12, out: Any = None
) -> Any:
    """``x / max(‖x‖, ε)``, as ``F.normalize``."""
    length = vector_norm(input, p, dim, keepdim=True)
    if out is not None or length is NotImplemented:
        return NotImplemented
    return input / length.clamp_min(eps)


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Any:
    """``xᵀy / (max(‖x‖, ε) max(‖y‖, ε))``, as ``F.cosine_similarity``."""
    if not (x1.is_floating_point() and x2.is_floating_point()):
        return NotImplemented

    def unit(x: Tensor) -> Any:
        length = vector_norm(x, 2, dim, keepdim=True)
        # torch differentiates the length as if it were not bounded by ε
        return x / (length + (length.clamp_min(eps) - length).detach())

    a, b = torch.broadcast_tensors(x1, x2)
    return (unit(a) * unit(b)).sum(dim)


def _lp_pool(average: Callable[..., Tensor], axes: int) -> Callable[..., Any]:
    """``(Σ xᵖ)^(1/p)`` over windows, which is NaN in forward mode where all are zero."""

    def lp_pool(
        input: Tensor,
        norm_type: float,
        kernel_size: Any,
        stride: Any = None,
        ceil_mode: bool = False,
    ) -> Tensor:
        one_size = isinstance(kernel_size, int)
        size = kernel_size**axes if one_size else math.prod(kernel_size)
        mean = average(input.pow(norm_type), kernel_size, stride, 0, ceil_mode)
        return root(mean * size, norm_type)

    return lp_pool


COMPOSED: dict[Any, Callable[..., Any]] = {
    torch.linalg.vector_norm: vector_norm,
    torch.norm: norm,
    Tensor.norm: norm_method,
    torch.linalg.norm: linalg_norm,
    torch.linalg.matrix_norm: matrix_norm,
    torch.norm_except_dim: norm_except_dim,
    torch._weight_norm: weight_norm,
    torch._weight_norm_interface: weight_norm_interface,
    torch.cdist: cdist,
    torch.pdist: pdist,
    torch.pairwise_distance: pairwise_distance,
    torch.dist: dist,
    Tensor.dist: dist,
    F.normalize: normalize,
    torch.cosine_similarity: cosine_similarity,
    F.lp_pool1d: _lp_pool(F.avg_pool1d, 1),
    F.lp_pool2d: _lp_pool(F.avg_pool2d, 2),
    F.lp_pool3d: _lp_pool(F.avg_pool3d, 3),
}
