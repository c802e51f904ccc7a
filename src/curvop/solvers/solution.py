"""The result of a solver, and its status."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from curvop.operators import Vector
from curvop.solvers.iteration import Progress
from curvop.solvers.system import System

# From best to worst: the status of several columns is that of the worst.
STATUSES = (
    "converged",
    "maxiter",
    "interrupted",
    "stagnated",
    "singular",
    "negative curvature",
)


@dataclass(frozen=True)
class Solution:
    """The solution of ``A x = b``, for one right-hand side or ``K`` of them.

    Attributes:
        x: The solution, in the form of ``b``.
        status: How it ended; of several columns the worst.

            - ``"converged"``: the residual, computed from ``x``, is below the tolerance.
            - ``"maxiter"``: it is not, after as many iterations as allowed.
            - ``"interrupted"``: by Ctrl-C; ``x`` is the last iterate.
            - ``"stagnated"``: rounding keeps the residual above the tolerance.
            - ``"singular"``: ``direction`` has no curvature, up to rounding: the matrix has
              no inverse on this right-hand side.
            - ``"negative curvature"``: ``direction`` has it, ``x`` is the iterate before
              it.
        iterations: Number of iterations, of the column that took most.
        residual_norm: ``‖b - A x‖``, computed from ``x`` by a separate product; after an
            interrupt that of the recurrence (``nan`` for lsmr).
        history: The norm that must get below the tolerance, at the start and after each
            iteration, from the recurrence; a column that has ended repeats its last.
        statuses: The status of each column.
        direction: If a column ended with ``"negative curvature"`` or ``"singular"``,
            a ``d`` of unit norm with ``dᵀ A d ≤ 0``, in the form of ``b``; zero for other
            columns, ``None`` if there is no such column.
    """

    x: Vector
    status: str
    iterations: int
    residual_norm: Tensor  # [], or [K]; float64 on the CPU
    history: Tensor  # [iterations + 1], or [iterations + 1, K]; float64 on the CPU
    statuses: tuple[str, ...]  # K words
    direction: Vector | None = None

    @property
    def converged(self) -> bool:
        """Whether every column converged."""
        return self.status == "converged"


class NotConvergedError(RuntimeError):
    """An inverse operator could not solve for the vector that it was multiplied with."""


def worst(statuses: Sequence[str]) -> str:
    """The worst status of several columns; of no columns ``"converged"``."""
    return max(statuses, key=STATUSES.index, default="converged")


def solution_of(system: System, run: Progress, direction: Tensor | None = None) -> Solution:
    """The result of a run, in the units and form of the right-hand side.

    Raises:
        FloatingPointError: If the solution overflows in its dtype.
    """
    scale = system.scale.cpu().double()
    history = torch.tensor(run.history[: run.iteration + 1], dtype=torch.float64) * scale
    residual_norm = torch.tensor(run.residual_norms, dtype=torch.float64) * scale
    if system.form.is_vector:
        history, residual_norm = history[:, 0], residual_norm[0]
    X = system.rescaled(run.X)
    if not bool(X.to(system.dtype).isfinite().all()):
        raise FloatingPointError(
            f"The solution overflows in {system.dtype}. Solve for a smaller b, or in a "
            "wider dtype."
        )
    return Solution(
        x=system.write(X),
        status=worst(run.statuses),
        iterations=run.iteration,
        residual_norm=residual_norm,
        history=history,
        statuses=tuple(run.statuses),
        direction=None if direction is None else system.write(direction),
    )
