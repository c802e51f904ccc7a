"""Inputs and targets of a batch, in the forms that loaders give it."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping, MutableMapping, Sized
from typing import Any, NamedTuple, TypeVar

from torch import Tensor, nn

Pair = tuple[Any, Any]
Unpack = Callable[[Any], Any]  # batch -> (X, y)
Value = TypeVar("Value")

LABELS = ("labels", "targets", "target", "y")
MEND = (
    "Nest further inputs in X, as in ((ids, mask), y), or pass unpack=, a function of the "
    "batch that returns (X, y)."
)


class Weighted(NamedTuple):
    """Targets and their weights, for a loss ``(prediction, y, weight)``."""

    y: Any
    weight: Any


def as_pair(batch: Any, *, takes_weight: bool = False) -> Pair:
    """Inputs and targets of a batch.

    Args:
        batch: A pair ``(X, y)``; a mapping with the targets under a known name, which is
            ``X`` without that entry; a triple ``(X, y, weight)``.
        takes_weight: Whether the loss has an argument for weights.

    Raises:
        TypeError: If it is none of these.
    """
    if isinstance(batch, Mapping):
        return _of_mapping(batch)
    if isinstance(batch, tuple | list):
        if len(batch) == 2:
            X, y = batch
            return X, y
        if len(batch) == 3 and takes_weight:
            X, y, weight = batch
            return X, Weighted(y, weight)
    size = f" of length {len(batch)}" if isinstance(batch, Sized) else ""
    third = (
        " A triple (X, y, weight) needs a loss (prediction, y, weight)."
        if size == " of length 3" and isinstance(batch, tuple | list)
        else ""
    )
    raise TypeError(
        "Expected batches that are pairs (X, y), got "
        f"{type(batch).__name__}{size}.{third} {MEND}"
    )


def _of_mapping(batch: Mapping[Any, Any]) -> Pair:
    """All entries but the targets, in a mapping of the same kind; and the targets."""
    found = [label for label in LABELS if label in batch]
    if len(found) != 1:
        which = (
            f"several of them names of targets: {', '.join(map(repr, found))}"
            if found
            else f"none of them {', '.join(map(repr, LABELS))}"
        )
        raise TypeError(
            "Expected batches that are pairs (X, y), got "
            f"{type(batch).__name__} of length {len(batch)}, with the keys "
            f"{', '.join(map(repr, batch))}, {which}. {MEND}"
        )
    (label,) = found
    if not isinstance(batch, MutableMapping):
        return {k: v for k, v in batch.items() if k != label}, batch[label]
    X = copy.copy(batch)  # keeps UserDict, BatchEncoding what they are
    del X[label]
    return X, batch[label]


def refuse_single_batch(source: Any) -> None:
    """Refuse one batch in place of an iterable of batches.

    Raises:
        TypeError: If the data is a batch.
    """
    if isinstance(source, Tensor):
        got = "a tensor."
    elif isinstance(source, Mapping | str):
        got = f"a {type(source).__name__}."
    elif (
        isinstance(source, tuple | list)
        and len(source) in (2, 3)
        and any(isinstance(part, Tensor) for part in source)
    ):
        got = f"a {type(source).__name__} of its parts: did you mean [(X, y)]?"
    else:
        return
    raise TypeError(
        f"Expected data as an iterable of batches (X, y), got {got} Wrap one batch as "
        "[(X, y)]."
    )


def takes_weight(loss_func: Any) -> bool:
    """Whether a loss has an argument for the weights of the data.

    That is a third argument which is required, or is optional and has a known name. For
    torch's own losses such arguments are class weights and options.
    """
    called = loss_func.forward if isinstance(loss_func, nn.Module) else loss_func
    try:
        parameters = list(inspect.signature(called).parameters.values())
    except (TypeError, ValueError):
        return False
    by_place = [
        p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)
    ]
    if len(by_place) < 3:
        return False
    required = [p for p in by_place if p.default is p.empty]
    if len(required) == 3:
        return True
    function = called.func if isinstance(called, functools.partial) else called
    is_torchs = str(getattr(function, "__module__", "")).split(".")[0] == "torch"
    return len(required) < 3 and not is_torchs and "weight" in by_place[2].name


def spread(function: Callable[..., Value]) -> Callable[[Any, Any], Value]:
    """A function of ``(prediction, y)`` that passes weights as a third argument."""

    def call(prediction: Any, y: Any) -> Value:
        if isinstance(y, Weighted):
            return function(prediction, *y)
        return function(prediction, y)

    return call
