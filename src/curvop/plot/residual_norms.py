"""How the residual of a linear solver went down."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from curvop.plot.canvas import COLOURS, DASHES, axes, check_kind
from curvop.solvers import Solution

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def convergence(
    solution: Solution | Mapping[str, Solution], *, ax: Axes | None = None
) -> Axes:
    """Draw the norm of the residual after each iteration.

    A run that converged ends in a dot, another one in a cross. Of several right-hand
    sides each has a line.

    Args:
        solution: What a solver returned, or several by name.
        ax: Where to draw; by default in a new figure.

    Returns:
        The axes.

    Raises:
        ImportError: If matplotlib is missing.
        TypeError: If something is of the wrong kind.
        ValueError: If there is nothing to draw.

    >>> import torch
    >>> from curvop import assume_psd, cg
    >>> A = assume_psd(torch.diag(torch.tensor([1.0, 2.0, 3.0])))
    >>> convergence(cg(A, torch.ones(3))).get_xlabel()
    'iteration'
    """
    runs = solution if isinstance(solution, Mapping) else {"": solution}
    if not runs:
        raise ValueError("Expected at least one solution, got none.")
    for run in runs.values():
        check_kind(run, Solution, "a solver such as cg")
    ax = axes(ax)
    for i, (name, run) in enumerate(runs.items()):
        columns = run.history.detach().cpu().reshape(len(run.history), -1).T
        for j, column in enumerate(columns):
            end = _last_iteration(column.tolist())
            ax.plot(
                column[: end + 1].numpy(),
                color=COLOURS[i % len(COLOURS)],
                linestyle=DASHES[i % len(DASHES)],
                linewidth=1.5 if len(columns) == 1 else 0.8,
                marker="o" if run.statuses[j] == "converged" else "x",
                markevery=[end],
                label=f"{name}: {run.status}" if name else run.status,
            )
    handles, labels = ax.get_legend_handles_labels()
    of = dict(zip(reversed(labels), reversed(handles), strict=True))  # one per run
    ax.legend(
        list(of.values())[::-1],
        list(of)[::-1],
        loc="lower left",  # of the legend, above the axes
        bbox_to_anchor=(0, 1),
        frameon=False,
    )
    ax.locator_params(axis="x", integer=True)
    ax.set_yscale("log")
    ax.set_xlabel("iteration")
    ax.set_ylabel("norm of the residual (unit of b)")
    return ax


def _last_iteration(column: list[float]) -> int:
    """A column that has ended repeats its last norm."""
    end = len(column) - 1
    while end > 0 and column[end] == column[end - 1]:
        end -= 1
    return end
