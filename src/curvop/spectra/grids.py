"""Grids on which a density is drawn: evenly spaced, or so in a symmetric logarithm."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["linear", "symlog"]


@dataclass(frozen=True)
class Scale:
    """The scale in which a grid is even, and Gaussians are wide by the same.

    Attributes:
        kind: ``u = t``, or ``u = asinh(t / linear)``, which is ``t`` near zero and
            ``± log |t|`` away from it.
        linear: Where the symmetric logarithm goes over from one to the other.
    """

    kind: Kind
    linear: float

    def of(self, t: Tensor) -> Tensor:
        """``u(t)``."""
        return t if self.kind == "linear" else torch.asinh(t / self.linear)

    def back(self, u: Tensor) -> Tensor:
        """``t(u)``."""
        return u if self.kind == "linear" else self.linear * torch.sinh(u)


def even(
    nodes: Tensor, scale: Scale, num_points: int, width: float
) -> tuple[Tensor, float]:
    """A grid ``[n]`` around the nodes, and the Gaussians' width in its scale.

    Args:
        nodes: Values to cover, with four widths to spare.
        scale: In which it is even.
        num_points: ``n``.
        width: Standard deviation as a share of the range of the nodes.
    """
    u = scale.of(nodes)
    low, high = float(u.min()), float(u.max())
    extent = high - low
    if extent <= 1e-12 * max(abs(low), abs(high)):  # all eigenvalues equal
        extent = max(abs(low), abs(high)) or 1.0
    sigma = width * extent
    low, high = low - 4 * sigma, high + 4 * sigma
    u = torch.linspace(low, high, num_points, dtype=torch.float64)
    return scale.back(u), sigma


def broadened(
    nodes: Tensor, weights: Tensor, grid: Tensor, scale: Scale, sigma: float
) -> Tensor:
    """Density on the grid of point masses that are Gaussians in its scale.

    A grid point has the mass of its cell, half-way to its neighbours, over the width of
    that. So the trapezoidal rule on the grid gives all the mass, whatever the width.

    Args:
        nodes: ``[..., m]``.
        weights: ``[..., m]``.
        grid: ``[n]``.
        scale: In which the Gaussians have one width.
        sigma: Their width.

    Returns:
        ``[..., n]``.
    """
    middles = (grid[1:] + grid[:-1]) / 2
    z = (scale.of(middles) - scale.of(nodes)[..., None]) / (math.sqrt(2) * sigma)
    below = (weights[..., None] * (1 + torch.erf(z)) / 2).sum(-2)  # [..., n - 1]
    total = weights.sum(-1, keepdim=True)
    mass = torch.diff(below, prepend=torch.zeros_like(total), append=total)
    edges = torch.cat([grid[:1], middles, grid[-1:]])
    return mass / torch.diff(edges)
