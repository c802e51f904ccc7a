"""Small mini-batches concatenated: fewer and larger products, the same matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from curvop.risk import nested

Batch = tuple[Any, Any]


def merge(batches: Sequence[Batch], size: int) -> list[Batch]:
    """Concatenate consecutive batches along the leading axis, up to ``size`` rows.

    Batches that differ in structure or in their trailing axes stay apart, as do batches
    that hold anything but tensors with one common leading axis.
    """
    groups: list[list[Batch]] = []
    rows, last = 0, None
    for batch in batches:
        kind, n = _kind(batch), _rows(batch)
        if n is not None and groups and kind == last and rows + n <= size:
            groups[-1].append(batch)
            rows += n
        else:
            groups.append([batch])
            rows, last = n or size, kind if n is not None else None
    return [_concatenate(group) for group in groups]


def _rows(batch: Batch) -> int | None:
    """The leading axis that all tensors of a batch share, if they do."""
    sizes = {t.shape[0] if t.ndim else None for t in nested.tensors(batch)}
    return sizes.pop() if len(sizes) == 1 else None


def _kind(batch: Batch) -> Any:
    """What must agree for two batches to be concatenated."""
    return (
        nested.structure(batch),
        tuple((t.shape[1:], t.dtype) for t in nested.tensors(batch)),
    )


def _concatenate(group: list[Batch]) -> Batch:
    if len(group) == 1:
        return group[0]
    columns = [list(nested.tensors(batch)) for batch in group]
    whole = iter([torch.cat(parts) for parts in zip(*columns, strict=True)])

    def next_one(_: Tensor) -> Tensor:
        return next(whole)

    X, y = nested.map_tensors(next_one, tuple(group[0]))
    return X, y
