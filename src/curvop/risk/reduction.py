"""What the loss's reduction divides by: the only place that knows.

A loss with ``reduction="mean"`` divides by a number that depends on the targets (the
weights of those that are not ignored) or on the shape (the number of elements). Averaging
the losses of batches is therefore wrong in general. The library sums loss terms over all
batches and divides once, by the sum of what these functions return for each batch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Divisor = Callable[[Any, Any], float | Tensor]  # (prediction, y) -> its share of Z


def sum_divisor(prediction: Any, y: Any) -> float:
    """``reduction="sum"`` divides by one; a share of it is not needed."""
    return 0.0


def class_divisor(weight: Tensor | None, ignore_index: int) -> Divisor:
    """Cross-entropy and NLL: the weights of the targets that are not ignored."""

    def divisor(prediction: Tensor, y: Tensor) -> float | Tensor:
        if y.is_floating_point():  # class probabilities: weights do not count
            return float(y.numel() // y.shape[1 if y.ndim > 1 else 0])
        kept = y != ignore_index
        if weight is None:
            return kept.sum()
        return (weight[y.clamp_min(0) * kept] * kept).sum()

    return divisor


def batch_divisor(prediction: Tensor, y: Any) -> float:
    """``reduction="batchmean"``: the leading axis of the prediction."""
    return float(prediction.shape[0]) if prediction.ndim else 1.0


def term_divisor(terms: Callable[[Any, Any], Tensor]) -> Divisor:
    """Element-wise losses: the number of loss terms."""

    def divisor(prediction: Any, y: Any) -> float:
        with torch.no_grad():
            return float(terms(prediction, y).numel())

    return divisor


def total_divisor(reduction: str, shares: Tensor) -> Tensor:
    """``Z`` from the sum of the batches' shares.

    Raises:
        ValueError: If nothing was averaged.
    """
    if reduction == "sum":
        return torch.ones_like(shares)
    if not bool(shares > 0):
        raise ValueError(
            "The loss averages over nothing: every target of the data is ignored, or "
            f"has weight zero (the divisor is {float(shares)})."
        )
    return shares
