"""How a report is made, and what it found."""

from __future__ import annotations

import datetime
import math
import platform
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy
import scipy
import torch

from curvop._version import __version__
from curvop.checkpoint import State


@dataclass(frozen=True)
class Settings:
    """How the report is made.

    Attributes:
        curvature: Which matrix.
        k: Number of eigenvalues at each end.
        tol: Residual that is small enough, relative to the norm of the matrix.
        seed: Of all random vectors.
        dtype: To compute in; ``None`` for that of the parameters.
        device: To compute on; ``None`` for that of the parameters.
        budget: Seconds that it may take; infinite for as long as it needs.
        progressbar: Whether to show progress.
        title: Heading of the page.
    """

    curvature: Literal["hessian", "ggn"] = "hessian"
    k: int = 10
    tol: float = 1e-4
    seed: int = 0
    dtype: torch.dtype | None = None
    device: torch.device | None = None
    budget: float = math.inf
    progressbar: bool = False
    title: str = "model"


@dataclass
class Findings:
    """All that a report shows; grows while it is made.

    Attributes:
        settings: How it is made.
        status: ``"complete"``, ``"incomplete"`` (the time was up) or ``"interrupted"``.
        model: What is known of model, loss, parameters and data.
        psd: Whether the matrix is known to be positive semi-definite.
        wanted: Names of the sections that there should be.
        sections: What was computed, by name.
        errors: Sections that failed, and why.
        notes: Warnings, each once.
        runs: What each run took; the last is this one.
        preconditioner: What is known of the preconditioner.
    """

    settings: Settings
    status: str
    model: dict[str, Any]
    psd: bool
    wanted: tuple[str, ...]
    sections: dict[str, State] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    runs: list[dict[str, Any]] = field(default_factory=list)
    preconditioner: dict[str, Any] | None = None


def now() -> str:
    """The time in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """What the numbers were computed with."""
    return {
        "curvop": __version__,
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "scipy": scipy.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def duration(seconds: float) -> str:
    """As a person would say it."""
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.3g} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"
