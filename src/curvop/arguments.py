"""Numbers that the user passed, checked."""

from __future__ import annotations

import math
from numbers import Integral
from typing import Any


def integer(value: Any, name: str, low: int, high: int | float = math.inf) -> int:
    """An integer in a range.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is out of range.

    >>> integer(3, "k", 1)
    3
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"Expected an integer {name}, got {type(value).__name__}.")
    n = int(value)
    if not low <= n <= high:
        upper = "" if high == math.inf else f" <= {high}"
        raise ValueError(f"Expected {low} <= {name}{upper}, got {n}.")
    return n


def at_least(low: int, name: str, value: Any) -> int:
    """An integer that is not below a bound.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If it is below.

    >>> at_least(1, "maxiter", 100)
    100
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"Expected {name} as an integer, got {type(value).__name__}.")
    if value < low:
        raise ValueError(f"Expected {name} of at least {low}, got {value}.")
    return int(value)


def tolerance(tol: Any) -> float:
    """A relative tolerance.

    Raises:
        TypeError: If it is not a real number.
        ValueError: If it is negative, not below one, or NaN.

    >>> tolerance(0)
    0.0
    """
    if isinstance(tol, str) or not hasattr(tol, "__float__"):
        raise TypeError(f"Expected a number as tol, got {type(tol).__name__}.")
    number = float(tol)
    if not 0 <= number < 1:
        raise ValueError(f"Expected 0 <= tol < 1, got {number}.")
    return number
