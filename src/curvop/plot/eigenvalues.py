"""Eigenvalues: in order with their residuals, or as a density with its error band."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from curvop.plot.canvas import BLUE, CURVATURE, GREY, ORANGE, axes, check_kind
from curvop.spectra import Density, Eigenpairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DECADES = 7  # of a density that are drawn
TICK_DECADES = 2


def spectrum(pairs: Eigenpairs, *, log: bool = False, ax: Axes | None = None) -> Axes:
    """Draw eigenvalues in descending order, each with its residual as an error bar.

    An eigenvalue lies within the residual of the value that is drawn. Negative ones are
    squares of another colour.

    Args:
        pairs: What :func:`curvop.eigsh` returned.
        log: Whether the axis of the eigenvalues is logarithmic; a symmetric logarithm if
            some are not positive.
        ax: Where to draw; by default in a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is missing.
        TypeError: If something is of the wrong kind.

    >>> import torch
    >>> from curvop import eigsh
    >>> pairs = eigsh(torch.diag(torch.tensor([3.0, -1.0, 2.0])), 3)
    >>> spectrum(pairs).get_title()
    '3 eigenvalues'
    """
    check_kind(pairs, Eigenpairs, "eigsh")
    ax = axes(ax)
    values = pairs.values.detach().cpu().double().flip(0)
    residuals = pairs.residuals.detach().cpu().double().flip(0)
    ranks = range(1, len(values) + 1)
    negative = values < 0
    for name, those, colour, marker in (
        ("positive", ~negative, BLUE, "o"),
        ("negative", negative, ORANGE, "s"),
    ):
        if not bool(those.any()):
            continue
        ax.errorbar(
            [r for r, shown in zip(ranks, those.tolist(), strict=True) if shown],
            values[those].numpy(),
            yerr=residuals[those].numpy(),
            fmt=marker,
            color=colour,
            markersize=5,
            capsize=3,
            label=f"{name}, with residual",
        )
    if log and bool((values > 0).all()):
        ax.set_yscale("log")
    elif log:
        ax.set_yscale("symlog", linthresh=_smallest_magnitude(values.tolist()))
    if bool((values <= 0).any()):
        ax.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    ax.locator_params(axis="x", integer=True)
    ax.set_xlabel("in descending order")
    ax.set_ylabel(f"eigenvalue λ ({CURVATURE})")
    ended = "" if pairs.status == "converged" else f" ({pairs.status})"
    ax.set_title(f"{len(values)} eigenvalues{ended}")
    ax.legend()
    return ax


def _smallest_magnitude(values: list[float]) -> float:
    """Where a symmetric logarithm becomes linear."""
    return min((abs(v) for v in values if v), default=1.0)


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
