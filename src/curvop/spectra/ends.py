"""Which eigenvalues are wanted, and beyond which values none may be missing."""

from __future__ import annotations

import math
from typing import Literal

from torch import Tensor

Which = Literal["LA", "SA", "LM", "BE"]


def wanted(theta: Tensor, k: int, which: Which) -> Tensor:
    """Positions, in order, of the ``k`` wanted among ascending values ``theta``."""
    m = len(theta)
    k = min(k, m)
    if which == "LM":
        return theta.abs().argsort(descending=True, stable=True)[:k].sort().values
    low = {"LA": 0, "SA": k, "BE": k // 2}[which]
    positions = theta.new_tensor([*range(low), *range(m - (k - low), m)])
    return positions.long()


def bounds(values: Tensor, which: Which) -> tuple[float, float]:
    """The open interval that the unwanted values lie in, given the wanted ones."""
    values = values.sort().values
    if which == "LM":
        smallest = float(values.abs().min())
        return -smallest, smallest
    low = {"LA": 0, "SA": len(values), "BE": len(values) // 2}[which]
    return (
        float(values[low - 1]) if low else -math.inf,
        float(values[low]) if low < len(values) else math.inf,
    )
