"""Traces of the blocks, one bar for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from curvop.estimate import Estimate
from curvop.plot.canvas import BLUE, CURVATURE, GREY, ORANGE, axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def per_layer(
    traces: Mapping[str | int, Estimate] | Mapping[str, Estimate],
    *,
    names: Sequence[str] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the trace of each block as a bar, with two standard errors.

    Args:
        traces: Estimates by name, as :func:`curvop.block_traces` returns them.
        names: Other names for the blocks, in the same order.
        ax: Where to draw; by default in a new figure that has room for all blocks.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is missing.
        TypeError: If something is of the wrong kind.
        ValueError: If there are no traces, or another number of names.

    >>> from curvop import Estimate
    >>> ax = per_layer({"weight": Estimate(3.0, 0.5, 10), "bias": Estimate(1.0, 0.2, 10)})
    >>> [label.get_text() for label in ax.get_yticklabels()]
    ['weight', 'bias']
    """
    labels = _labels(traces, names)
    ax = axes(ax, size=(6.4, 1.2 + 0.3 * len(labels)))
    values = [float(t.value) for t in traces.values()]
    ax.barh(
        range(len(labels)),
        values,
        xerr=[2 * t.standard_error for t in traces.values()],
        color=[ORANGE if v < 0 else BLUE for v in values],
        error_kw={"ecolor": ax.xaxis.label.get_color(), "capsize": 3, "elinewidth": 1.2},
    )
    ax.axvline(0, color=GREY, linewidth=0.8)
    ax.set_yticks(range(len(labels)), labels)
    ax.invert_yaxis()  # the first layer on top
    # names of layers leave little room: the label ends where the axis does
    ax.set_xlabel(f"trace ± 2 standard errors ({CURVATURE})", loc="right")
    ax.set_ylabel("parameter")
    return ax


def _labels(
    traces: Mapping[str | int, Estimate] | Mapping[str, Estimate],
    names: Sequence[str] | None,
) -> list[str]:
    """One label for each trace.

    Raises:
        TypeError: If they are no estimates by name.
        ValueError: If there are none, or another number of names.
    """
    if not isinstance(traces, Mapping) or not all(
        isinstance(t, Estimate) for t in traces.values()
    ):
        raise TypeError(
            "Expected a mapping from names to Estimate, as block_traces returns it, got "
            f"{type(traces).__name__}."
        )
    if not traces:
        raise ValueError("Expected at least one trace, got none.")
    labels = [str(name) for name in (traces if names is None else names)]
    if len(labels) != len(traces):
        raise ValueError(f"Expected {len(traces)} names, one for each block, got {names}.")
    return labels
