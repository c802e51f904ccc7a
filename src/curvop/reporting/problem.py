"""What the sections of a report are computed from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from curvop.monitoring import Preconditioner
from curvop.operators import LinearOperator
from curvop.reporting.account import Clock
from curvop.reporting.resources import is_worth_saving


@dataclass(frozen=True)
class Problem:
    """The matrix, the gradient, and how to look at them.

    Attributes:
        A: The matrix; its products are timed by ``clock``.
        clock: What ends a section.
        gradient: Of the same loss, flat, ``[N]``.
        k: Number of eigenvalues at each end.
        tol: Residual that is small enough, relative to the norm.
        seed: Of all random vectors.
        preconditioner: Of the optimizer, if there is one.
        gauss_newton: Makes the GGN, timed as well; ``None`` if ``A`` serves.
        progressbar: Whether solvers show their progress.
        room: Number of vectors that may be held at once.
    """

    A: LinearOperator
    clock: Clock
    gradient: Tensor  # [N]
    k: int
    tol: float
    seed: int
    preconditioner: Preconditioner | None
    gauss_newton: Callable[[], LinearOperator] | None
    progressbar: bool
    room: int

    def checkpoint(self, file: Path, num_vectors: int) -> Path | None:
        """The file, if it is worth writing the state of a solver with so many vectors."""
        seconds = self.clock.seconds_per_product
        is_worth = file.exists() or is_worth_saving(self.A, num_vectors, seconds)
        return file if is_worth else None

    def generator(self, stream: int = 0) -> Generator:
        """Random vectors of their own for each stream."""
        return torch.Generator().manual_seed(self.seed + stream)
