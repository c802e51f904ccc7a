"""The density of eigenvalues, with its error band."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from curvop.plot.canvas import BLUE, CURVATURE, ORANGE, axes, check_kind
from curvop.spectra import Density, Eigenpairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DECADES = 7  # of a density that are drawn
TICK_DECADES = 2


def density(
    density: Density,
    *,
    pairs: Eigenpairs | None = None,
    log: bool = False,
    ax: Axes | None = None,
) -> Axes:
    """Draw a spectral density with a band of two standard errors.

    Args:
        density: What :func:`curvop.spectral_density` returned.
        pairs: Eigenvalues to mark, from :func:`curvop.eigsh`.
        log: Whether both axes are logarithmic, that of the eigenvalues symmetrically: the
            picture for ``grid="symlog"``, and for a bulk at zero.
        ax: Where to draw; by default in a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is missing.
        TypeError: If something is of the wrong kind.

    >>> import torch
    >>> from curvop import spectral_density
    >>> found = spectral_density(torch.diag(torch.linspace(-1, 1, 100)))
    >>> density(found).get_ylabel()
    'density of the eigenvalues (1 / unit of λ)'
    """
    check_kind(density, Density, "spectral_density")
    if pairs is not None:
        check_kind(pairs, Eigenpairs, "eigsh")
    ax = axes(ax)
    t, values = density.grid.cpu().numpy(), density.values.cpu().numpy()
    error = density.standard_error.cpu().numpy()
    low = values.max() / 10**DECADES if log else 0.0
    ax.fill_between(
        t,
        (values - 2 * error).clip(low),
        (values + 2 * error).clip(low),
        color=BLUE,
        alpha=0.35,
        linewidth=0,
        label="± 2 standard errors",
    )
    ax.plot(t, values.clip(low), color=BLUE, linewidth=1.5, label="density")
    if log:
        _symmetric_logarithm(ax, density)
        ax.set_yscale("log")
    ax.set_ylim(bottom=low)
    if pairs is not None:
        ax.plot(
            pairs.values.detach().cpu().numpy(),
            [0.03] * len(pairs.values),
            linestyle="none",
            marker="v",
            color=ORANGE,
            transform=ax.get_xaxis_transform(),
            label=f"{len(pairs.values)} eigenvalues",
        )
    ax.set_xlabel(f"eigenvalue λ ({CURVATURE})")
    ax.set_ylabel("density of the eigenvalues (1 / unit of λ)")
    ax.legend()
    return ax


def _symmetric_logarithm(ax: Axes, density: Density) -> None:
    """Linear where ``spectral_density`` has its grid so by default; few ticks."""
    largest = float(density.nodes.abs().max()) or 1.0
    ax.set_xscale("symlog", linthresh=1e-4 * largest, linscale=0.5)
    top = math.floor(math.log10(largest))
    powers = [10.0**e for e in range(top, top - 4, -TICK_DECADES)]
    ax.set_xticks([-p for p in powers] + [0.0] + powers[::-1])
    ax.minorticks_off()
