"""Tensors inside tuples, lists and mappings."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor


def tensors(x: Any) -> Iterator[Tensor]:
    """All tensors in ``x``, depth first."""
    if isinstance(x, Tensor):
        yield x
    elif isinstance(x, Mapping):
        for value in x.values():
            yield from tensors(value)
    elif isinstance(x, list | tuple):
        for value in x:
            yield from tensors(value)


def map_tensors(fn: Callable[[Tensor], Tensor], x: Any) -> Any:
    """A copy of ``x`` in which each tensor ``t`` is ``fn(t)``; containers keep types."""
    if isinstance(x, Tensor):
        return fn(x)
    if isinstance(x, MutableMapping):
        out = copy.copy(x)  # keeps UserDict, BatchEncoding, ModelOutput what they are
        for key, value in x.items():
            out[key] = map_tensors(fn, value)
        return out
    if isinstance(x, Mapping):
        return {key: map_tensors(fn, value) for key, value in x.items()}
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*(map_tensors(fn, value) for value in x))
    if isinstance(x, list | tuple):
        return type(x)(map_tensors(fn, value) for value in x)
    return x


def differentiable(x: Any) -> tuple[Tensor, ...]:
    """The floating-point tensors in ``x``.

    Raises:
        TypeError: If there are none.
    """
    found = tuple(t for t in tensors(x) if t.is_floating_point())
    if not found:
        raise TypeError(
            "Expected a prediction of floating-point tensors, got "
            f"{type(x).__name__} without any."
        )
    return found


def refill(x: Any, found: Sequence[Tensor]) -> Any:
    """``x`` with its floating-point tensors replaced, in order."""
    values = iter(found)
    return map_tensors(lambda t: next(values) if t.is_floating_point() else t, x)


def structure(x: Any) -> Any:
    """``x`` without its tensors: equal for two of the same structure."""
    if isinstance(x, Tensor):
        return Tensor
    if isinstance(x, Mapping):
        return type(x), tuple((key, structure(value)) for key, value in x.items())
    if isinstance(x, list | tuple):
        return type(x), tuple(structure(value) for value in x)
    return x
