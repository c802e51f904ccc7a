"""The value of a user's function, checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def evaluate(func: Callable[[], Any]) -> Tensor:
    """The value of a closure, checked to be a real scalar that can be differentiated.

    Raises:
        TypeError: If it is no real floating-point tensor.
        ValueError: If it is no finite scalar, or depends on no tensor.
    """
    value = scalar(func())
    if not value.requires_grad:
        # zeros would be right for a constant, and hide what is nearly always a mistake
        raise ValueError(
            "Expected func to return a tensor that depends on params, got one without a "
            "graph. Compute it inside func, without .detach(), .item() or no_grad."
        )
    return value


def scalar(value: Any) -> Tensor:
    """What a function returned, checked to be a real scalar.

    Raises:
        TypeError: If it is no real floating-point tensor.
        ValueError: If it is no finite scalar.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"Expected a real floating-point tensor as the function's value, got {got}."
        )
    if value.numel() != 1:
        raise ValueError(
            f"Expected a scalar as the function's value, got shape {tuple(value.shape)}. "
            "Reduce it with .sum(), or a loss with reduction='mean' or 'sum'."
        )
    if not value.isfinite():
        raise ValueError(
            "Expected a finite value of the function, got "
            f"{float(value.detach())}. It has no derivatives there: look at the parameters "
            "and the data."
        )
    return value.reshape(())
