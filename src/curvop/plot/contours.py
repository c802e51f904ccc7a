"""Contours of the loss, and of its quadratic model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from curvop.plot.canvas import ORANGE, axes, check_kind
from curvop.plot.surface import Landscape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVELS = 9
SHOWN = 0.95  # share of the points below the highest level


def landscape(
    landscape: Landscape, *, quadratic: bool = True, ax: Axes | None = None
) -> Axes:
    """Draw contours of the loss, and dashed those of its quadratic model.

    Where the two agree, the matrix describes the loss. Both have the same levels, which
    are evenly spaced in the distance from the bottom of a bowl.

    Args:
        landscape: What :func:`curvop.loss_landscape` returned.
        quadratic: Whether to draw the model.
        ax: Where to draw; by default in a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is missing.
        TypeError: If something is of the wrong kind.
        ValueError: If the loss is finite nowhere, or the same everywhere.

    >>> from curvop import HessianLinearOperator, loss_landscape
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> data = [(torch.eye(2), torch.zeros(2, 1))]
    >>> H = HessianLinearOperator(model, torch.nn.MSELoss(), [model.weight], data)
    >>> landscape(loss_landscape(H, torch.eye(2), num=5)).get_xlabel()
    'step along direction 1 (curvature 1)'
    """
    check_kind(landscape, Landscape, "loss_landscape")
    ax = axes(ax)
    from matplotlib import colormaps

    finite = landscape.loss[landscape.loss.isfinite()]
    if not len(finite) or not bool(finite.max() > finite.min()):
        raise ValueError(
            "Expected a loss that is finite and varies, got one that does not. Choose "
            "another radius."
        )
    levels = _levels(finite)
    alpha, beta = landscape.alpha, landscape.beta
    # alpha on the x axis: rows of what matplotlib draws are y
    loss = landscape.loss.where(landscape.loss.isfinite(), torch.nan).T.numpy()
    shades = colormaps["cividis"](torch.linspace(0, 0.8, LEVELS + 1).numpy())
    filled = ax.contourf(alpha, beta, loss, levels, colors=shades, extend="max")
    ax.figure.colorbar(filled, ax=ax, label="loss", format="{x:.3g}")
    if quadratic:
        # smooth, however coarse the grid of the loss is
        alpha, beta = _finer(alpha), _finer(beta)
        model = replace(landscape, alpha=alpha, beta=beta).quadratic().T.numpy()
        ax.contour(
            alpha, beta, model, levels[1:], colors="white", linestyles="dashed",
            linewidths=1.2,
        )  # fmt: skip
        ax.plot([], [], color="white", linestyle="--", label="quadratic model")
    ax.plot(
        0, 0, linestyle="none", marker="+", markersize=11, markeredgewidth=2,
        color=ORANGE, label="parameters",
    )  # fmt: skip
    ax.legend(facecolor="#555555", labelcolor="white", framealpha=0.9)
    ax.set_xlabel(_label(landscape, 0))
    ax.set_ylabel(_label(landscape, 1))
    return ax


def _levels(loss: Tensor) -> list[float]:
    """Evenly spaced in the root, from the lowest loss to one that few points exceed."""
    low, high = loss.min(), torch.quantile(loss, SHOWN)
    high = high if high > low else loss.max()
    levels: Tensor = low + (high - low) * torch.linspace(0, 1, LEVELS + 1).double() ** 2
    return [float(level) for level in levels]


def _finer(steps: Tensor) -> Tensor:
    return torch.linspace(float(steps[0]), float(steps[-1]), 201, dtype=torch.float64)


def _label(landscape: Landscape, i: int) -> str:
    if landscape.eigenvalues is not None:
        return f"step along eigenvector {i + 1} (λ = {landscape.eigenvalues[i]:.3g})"
    return f"step along direction {i + 1} (curvature {landscape.curvature[i, i]:.3g})"
