"""Numbers at the public door."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


def check_count(name: str, value: Any) -> int | None:
    """A positive integer, or ``None``.

    Raises:
        TypeError: If it is something else.
        ValueError: If it is not positive.
    """
    if value is None:
        return None
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"Expected {name} as an integer, got {type(value).__name__}.")
    if value < 1:
        raise ValueError(f"Expected {name} of at least 1, got {value}.")
    return int(value)


def check_damping(value: Any) -> float:
    """A positive number.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not positive, or not finite.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"Expected damping as a number, got {type(value).__name__}.")
    damping = float(value)
    if not (math.isfinite(damping) and damping > 0):
        raise ValueError(
            f"Expected a positive damping, got {value}: V Vᵀ with fewer columns than rows "
            "is singular."
        )
    return damping
