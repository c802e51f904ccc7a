"""Eigenvalues in order, with their residuals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from curvop.plot.canvas import BLUE, CURVATURE, GREY, ORANGE, axes, check_kind
from curvop.spectra import Eigenpairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes


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
