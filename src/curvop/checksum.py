"""Checksums of the contents of a file, and a search for values that are not finite."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor


def checksum(value: Any) -> str:
    """SHA-256 of numbers, strings and the bits of tensors, in any nesting.

    >>> checksum({"v": torch.zeros(2)}) == checksum({"v": torch.tensor([0.0, -0.0])})
    False
    """
    return hashlib.sha256(repr(_described(value)).encode()).hexdigest()


def not_finite(value: Any, name: str = "") -> Iterator[str]:
    """Names of tensors in a state that have an infinite entry or NaN, of numbers NaN.

    Lists of numbers may have NaN for values that are not known yet.

    >>> list(not_finite({"mean": torch.tensor([1.0, torch.nan]), "sketch": {"size": 3}}))
    ['mean']
    """
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from not_finite(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for i, part in enumerate(value):
            if not isinstance(part, float):
                yield from not_finite(part, f"{name}[{i}]")
    elif isinstance(value, Tensor):
        if not bool(value.isfinite().all()):
            yield name
    elif isinstance(value, float) and math.isnan(value):
        yield name


def _described(value: Any) -> Any:
    """The same with strings in place of tensors."""
    if isinstance(value, Tensor):
        t = value.detach().cpu().contiguous()
        content = hashlib.sha256(t.reshape(-1).view(torch.uint8).numpy().data)
        return f"{t.dtype}{tuple(t.shape)}{content.hexdigest()}"
    if isinstance(value, Mapping):
        return {key: _described(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        parts = [_described(part) for part in value]
        return parts if isinstance(value, list) else tuple(parts)
    return value
