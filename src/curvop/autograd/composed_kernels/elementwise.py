"""Element-wise functions: piecewise ones, and those with a removable singularity."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """``min(max(x + 3, 0), 6) / 6``; torch's kernel has no second derivative."""
    x = input.clone() if inplace else input
    one, zero = torch.ones_like(x), torch.zeros_like(x)
    out = torch.where(x <= -3, zero, torch.where(x >= 3, one, x / 6 + 0.5))
    return input.copy_(out) if inplace else out


def hardswish(input: Tensor, inplace: bool = False) -> Tensor:
    """``x min(max(x + 3, 0), 6) / 6``."""
    x = input.clone() if inplace else input
    middle = x * (x + 3) / 6
    out = torch.where(x <= -3, torch.zeros_like(x), torch.where(x >= 3, x, middle))
    return input.copy_(out) if inplace else out


def sinc(input: Tensor, *, out: Tensor | None = None) -> Any:
    """``sin(πx) / (πx)``, whose derivatives at 0 torch computes as 0 / 0."""
    if out is not None or not input.is_floating_point():
        return NotImplemented
    y = torch.pi * input
    is_small = y.abs() < 1
    z = torch.where(is_small, y, 0) ** 2
    series = torch.zeros_like(z)
    for k in reversed(range(10)):  # Σ (-1)ᵏ y²ᵏ / (2k + 1)!, within rounding for |y| < 1
        series = series * z + (-1) ** k / math.factorial(2 * k + 1)
    y = torch.where(is_small, 1, y)
    return torch.where(is_small, series, y.sin() / y)


def rrelu(
    input: Tensor,
    lower: float = 1 / 8,
    upper: float = 1 / 3,
    training: bool = False,
    inplace: bool = False,
) -> Any:
    """With the mean slope outside training; torch's kernel has no vmap."""
    if training:
        return NotImplemented
    return F.leaky_relu(input, (lower + upper) / 2, inplace)


COMPOSED: dict[Any, Callable[..., Any]] = {
    F.hardsigmoid: hardsigmoid,
    F.hardswish: hardswish,
    F.rrelu: rrelu,
    torch.sinc: sinc,
    torch.special.sinc: sinc,
    Tensor.sinc: sinc,
}
