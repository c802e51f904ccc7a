"""Progressive sharpening: eigenvalues over the steps of training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from curvop.monitoring import CurvatureRecord
from curvop.plot.canvas import BLUE, CURVATURE, GREY, ORANGE, axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def monitor(history: Sequence[CurvatureRecord], *, ax: Axes | None = None) -> Axes:
    """Draw the largest eigenvalues over the steps of training, with the stability line.

    The line is ``2/η`` for gradient descent: beyond it a step along the first eigenvector
    overshoots ever more. If the sharpness was preconditioned, it is drawn instead.

    Args:
        history: ``CurvatureMonitor.history``.
        ax: Where to draw; by default in a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is missing.
        TypeError: If something is of the wrong kind.
        ValueError: If there is nothing to draw.
    """
    records = _records(history)
    preconditioned = [r for r in records if r.preconditioned_sharpness is not None]
    records = preconditioned or records
    ax = axes(ax)
    steps = [r.step for r in records]
    values: list[tuple[Any, ...]] = [r.values for r in records]
    residuals: list[tuple[Any, ...]] = [r.residuals for r in records]
    if preconditioned:
        values = [(r.preconditioned_sharpness,) for r in records]
        residuals = [(r.preconditioned_residual,) for r in records]
    curves, errors = zip(*values, strict=True), zip(*residuals, strict=True)
    for i, (curve, error) in enumerate(zip(curves, errors, strict=True)):
        ax.errorbar(
            steps,
            curve,
            yerr=error,
            color=BLUE,
            alpha=1 if i == 0 else 0.45,
            marker="o" if len(steps) < 60 else None,
            markersize=3,
            linewidth=1.6 if i == 0 else 1,
            elinewidth=0.8,
            label="sharpness, with residual" if i == 0 else _others(i),
        )
    known = [(r.step, r.threshold) for r in records if r.threshold is not None]
    if known:
        ax.plot(
            *zip(*known, strict=True),
            color=ORANGE,
            linestyle="--",
            linewidth=1.6,
            drawstyle="steps-post",
            zorder=3,  # the curves end up on it
            label=_threshold(records),
        )
    ax.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    ax.set_xlabel("step")
    unit = "loss" if preconditioned else CURVATURE
    ax.set_ylabel(
        f"largest eigenvalue of P⁻¹H ({unit})"
        if preconditioned
        else f"largest eigenvalues ({unit})"
    )
    ax.legend()
    return ax


def _others(i: int) -> str | None:
    """One entry in the legend for all but the first."""
    return "further eigenvalues" if i == 1 else None


def _threshold(records: Sequence[CurvatureRecord]) -> str:
    """What to call the line: ``2/η`` if it is that."""
    plain = all(
        r.threshold is None
        or (r.learning_rate and abs(r.threshold * r.learning_rate - 2) < 1e-9)
        for r in records
    )
    return "2/η" if plain else "stability threshold"


def _records(history: object) -> list[CurvatureRecord]:
    """The history, looked at.

    Raises:
        TypeError: If it is none.
        ValueError: If it is empty.
    """
    if not isinstance(history, Sequence) or not all(
        isinstance(r, CurvatureRecord) for r in history
    ):
        raise TypeError(
            "Expected the history of a CurvatureMonitor, a sequence of CurvatureRecord, "
            f"got {type(history).__name__}. Pass monitor.history."
        )
    if not history:
        raise ValueError("Expected at least one measurement, got none.")
    return list(history)
