"""The loss on a plane through the parameters: computed, and drawn as contours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from curvop.curvature import CurvatureLinearOperator
from curvop.linearized import origin
from curvop.plot.canvas import ORANGE, axes, check_kind
from curvop.risk import (
    all_reduce,
    failing_together,
    loss_and_gradient,
    total_divisor,
)
from curvop.spectra import Eigenpairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEVELS = 9  # of the contours
SHOWN = 0.95  # share of the points below the highest level


@dataclass(frozen=True)
class Landscape:
    r"""The loss ``L(θ + α d₁ + β d₂)`` over a grid, and what its quadratic model needs.

    Attributes:
        alpha: Steps along the first direction, ascending, ``[m]``.
        beta: Steps along the second direction, ascending, ``[n]``.
        loss: The loss over all data, ``[m, n]``; may be infinite far away.
        centre: The loss at ``θ``.
        slopes: ``Dᵀ g`` with the gradient ``g``, ``[2]``.
        curvature: ``Dᵀ H D`` with the operator's matrix ``H``, ``[2, 2]``.
        eigenvalues: Those of the directions, if they were eigenvectors, ``[2]``.
    """

    alpha: Tensor  # [m]; float64 on the CPU, as all of them
    beta: Tensor  # [n]
    loss: Tensor  # [m, n]
    centre: float
    slopes: Tensor  # [2]
    curvature: Tensor  # [2, 2]
    eigenvalues: Tensor | None = None  # [2]

    def quadratic(self) -> Tensor:
        r"""The second-order model ``L + Dᵀg · s + ½ sᵀ (Dᵀ H D) s``, ``[m, n]``."""
        s = torch.stack(torch.meshgrid(self.alpha, self.beta, indexing="ij"), -1)
        return self.centre + s @ self.slopes + ((s @ self.curvature) * s).sum(-1) / 2


def loss_landscape(
    H: CurvatureLinearOperator,
    directions: Tensor | Eigenpairs,
    *,
    radius: float | tuple[float, float] = 1.0,
    num: int | tuple[int, int] = 25,
    progressbar: bool = False,
) -> Landscape:
    r"""The loss of a model on a plane through its parameters, over all data.

    .. math:: L(θ + α d_1 + β d_2), \qquad |α|, |β| ≤ \text{radius}

    Computed in one pass over the data, with a forward pass of each batch at each point.
    The model is left as found. (Li, Xu, Taylor, Studer, Goldstein, "Visualizing the loss
    landscape of neural nets", 2018, take random directions.)

    Args:
        H: A curvature operator of a module, or of a callable ``(params, X)``; it knows
            the loss and the data. Its matrix is the one of the quadratic model.
        directions: ``d``, columns ``[N, 2]``; or eigenpairs, of which the two of largest
            magnitude are taken, the largest first.
        radius: Largest step, for both directions or for each. The steps count in lengths
            of the direction.
        num: Number of points along both directions, or each; odd to have ``θ`` in it.
        progressbar: Whether to show a bar over points and batches.

    Returns:
        The landscape.

    Raises:
        TypeError: If something is of the wrong kind, or the model is a closure, which
            cannot be evaluated at other parameters.
        ValueError: If something does not fit.

    >>> from curvop import HessianLinearOperator
    >>> model = torch.nn.Linear(2, 1, bias=False)
    >>> data = [(torch.eye(2), torch.zeros(2, 1))]
    >>> H = HessianLinearOperator(model, torch.nn.MSELoss(), [model.weight], data)
    >>> landscape = loss_landscape(H, torch.eye(2), num=5)
    >>> torch.allclose(landscape.loss, landscape.quadratic(), atol=1e-6)
    True
    """
    op = origin(H, "loss_landscape")
    if not op.risk.parameters.functional:
        raise TypeError(
            "loss_landscape evaluates the model at other parameters, which a closure over "
            "them does not allow. Build the operator from an nn.Module, or from a callable "
            "(params, X) -> prediction with a dict of parameters."
        )
    D, eigenvalues = _columns(directions, op)
    alpha, beta = (
        torch.linspace(-r, r, n, dtype=torch.float64)
        for r, n in zip(_radii(radius), _nums(num), strict=True)
    )
    centre, gradient = loss_and_gradient(op.risk)
    loss = _losses(op, D, torch.cartesian_prod(alpha, beta), progressbar)
    wide = D.double()
    return Landscape(
        alpha,
        beta,
        loss.reshape(len(alpha), len(beta)),
        centre,
        (wide.T @ gradient.double()).cpu(),
        (wide.T @ (H @ D).double()).cpu(),
        eigenvalues,
    )


def _losses(
    op: CurvatureLinearOperator, D: Tensor, steps: Tensor, progressbar: bool
) -> Tensor:
    """The loss at ``θ + D s`` for each row ``s`` of ``[n, 2]``; ``[n]``."""
    params = op.risk.parameters.tensors
    blocks = [
        d.reshape(2, *p.shape)
        for d, p in zip(D.T.split([p.numel() for p in params], 1), params, strict=True)
    ]
    sums = torch.zeros(len(steps), 2, dtype=torch.float64, device=op.device)
    together = failing_together(sums.numel(), op.risk.process_group, sums.dtype, op.device)
    with op.risk.context(), torch.no_grad(), together:
        for X, y in op.risk.data.batches("loss_landscape"):
            for i, (a, b) in enumerate(
                tqdm(steps.tolist(), "loss_landscape", disable=not progressbar)
            ):
                there = [
                    (p + a * d[0] + b * d[1]).to(p.dtype)
                    for p, d in zip(params, blocks, strict=True)
                ]
                loss, share = op.risk.tally(op.risk.predict(there, X), y)
                sums[i, 0] += loss
                sums[i, 1] += share
    (sums,) = all_reduce([sums], op.risk.process_group)
    Z = total_divisor(op.risk.loss.reduction, sums[0, 1])
    return (sums[:, 0] / Z).cpu()


def _columns(directions: Any, op: CurvatureLinearOperator) -> tuple[Tensor, Tensor | None]:
    """Directions ``[N, 2]``, and their eigenvalues if they have any.

    Raises:
        TypeError: If they are neither a tensor nor eigenpairs.
        ValueError: If they do not fit.
    """
    eigenvalues = None
    if isinstance(directions, Eigenpairs):
        if len(directions.values) < 2:
            raise ValueError(
                f"Expected at least two eigenpairs, got {len(directions.values)}."
            )
        two = directions.values.abs().argsort(descending=True)[:2]
        eigenvalues = directions.values[two].detach().cpu().double()
        directions = directions.vectors[:, two]
    if not isinstance(directions, Tensor):
        raise TypeError(
            "Expected directions as a tensor [N, 2] or as Eigenpairs, got "
            f"{type(directions).__name__}."
        )
    if directions.shape != (op.shape[0], 2):
        raise ValueError(
            f"Expected directions of shape ({op.shape[0]}, 2), got "
            f"{tuple(directions.shape)}."
        )
    return directions.detach().to(op.device, op.dtype), eigenvalues


def _radii(radius: Any) -> tuple[float, float]:
    radii = tuple(radius) if isinstance(radius, Sequence) else (radius, radius)
    if len(radii) != 2 or not all(0 < r < math.inf for r in radii):
        raise ValueError(f"Expected radius as one or two positive numbers, got {radius}.")
    return radii


def _nums(num: Any) -> tuple[int, int]:
    nums = tuple(num) if isinstance(num, Sequence) else (num, num)
    if len(nums) != 2 or not all(isinstance(n, int) and n >= 2 for n in nums):
        raise ValueError(f"Expected num as one or two integers of at least 2, got {num}.")
    return nums


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
