"""Sums, means and maxima over bags of embeddings, and over segments."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def embedding_bag(
    input: Tensor,  # [B, L], or [T] with offsets
    weight: Tensor,  # [V, D]
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Any:
    """Sums, means or maxima of embeddings, ``[B, D]``, as ``F.embedding_bag``."""
    is_plain = input.ndim == 2 and not input.is_nested and offsets is None
    is_ragged = input.ndim == 1 and offsets is not None
    # max_norm writes to the weight, scale_grad_by_freq changes its gradient: left to torch
    has_own = max_norm is not None or scale_grad_by_freq
    is_weighted = per_sample_weights is not None
    if has_own or not (is_plain or is_ragged) or (is_weighted and mode != "sum"):
        return NotImplemented
    if offsets is None:
        tokens, is_entry = input, torch.ones_like(input, dtype=torch.bool)
        scale = per_sample_weights
    else:
        ends = offsets[1:] if include_last_offset else offsets
        ends = ends if include_last_offset else F.pad(offsets[1:], (0, 1), value=len(input))
        where, is_entry = _padded(offsets[: len(ends)], ends)
        tokens = _taken(input, where)
        scale = None if per_sample_weights is None else _taken(per_sample_weights, where)
    if padding_idx is not None:
        is_entry = is_entry & (tokens != padding_idx % len(weight))
    rows = weight[tokens]
    rows = rows if scale is None else rows * scale[..., None]
    return _reduced(rows, is_entry, mode)


def segment_reduce(
    data: Tensor,
    reduce: str,
    *,
    lengths: Tensor | None = None,
    indices: Tensor | None = None,
    offsets: Tensor | None = None,
    axis: int = 0,
    unsafe: bool = False,
    initial: float | None = None,
) -> Any:
    """Over segments of the first axis, as ``torch.segment_reduce``."""
    if offsets is None and lengths is not None:
        offsets = F.pad(lengths.cumsum(-1), (1, 0))
    has_own = axis != 0 or indices is not None or initial is not None
    if has_own or offsets is None or offsets.ndim != 1 or reduce not in _REDUCED:
        return NotImplemented
    where, is_entry = _padded(offsets[:-1], offsets[1:])
    if not bool(is_entry.any(1).all()):
        return NotImplemented  # what an empty segment reduces to is left to torch
    return _reduced(_taken(data, where), is_entry, reduce)


def _padded(starts: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """Positions in each bag up to the longest, ``[B, L]``, and which belong to it."""
    sizes = ends - starts
    longest = int(sizes.max()) if len(sizes) else 0
    steps = torch.arange(longest, device=starts.device)
    return starts[:, None] + steps, steps < sizes[:, None]


def _taken(x: Tensor, where: Tensor) -> Tensor:
    return x[where.clamp_max(len(x) - 1)]


def _reduced(rows: Tensor, is_entry: Tensor, mode: str) -> Any:
    """Over the entries of each bag, ``[B, L, ...] -> [B, ...]``; 0 for an empty bag."""
    mask = is_entry.reshape(*is_entry.shape, *[1] * (rows.ndim - 2))
    return _REDUCED[mode](rows, mask)


def _sum(rows: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, rows, 0).sum(1)


def _mean(rows: Tensor, mask: Tensor) -> Tensor:
    return _sum(rows, mask) / mask.sum(1).clamp_min(1)


def _max(rows: Tensor, mask: Tensor) -> Tensor:
    if not rows.shape[1]:
        return rows.sum(1)
    largest = torch.where(mask, rows, -math.inf).max(1).values
    return torch.where(mask.any(1), largest, 0)


def _min(rows: Tensor, mask: Tensor) -> Tensor:
    return -_max(-rows, mask)


_REDUCED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "sum": _sum,
    "mean": _mean,
    "max": _max,
    "min": _min,
}

COMPOSED: dict[Any, Callable[..., Any]] = {
    F.embedding_bag: embedding_bag,
    torch.segment_reduce: segment_reduce,
}
