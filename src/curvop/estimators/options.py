"""The options of all estimators, checked."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from numbers import Integral, Real

from torch import Generator

from curvop.generators import source
from curvop.operators import LinearOperator

UNLIMITED = sys.maxsize


@dataclass(frozen=True)
class Options:
    """When to stop, the source of probes, and whether to show progress.

    Attributes:
        num_matvecs: Most products; ``UNLIMITED`` for as many as ``tol`` takes.
        tol: Largest standard error to stop at, or ``None`` to use up the products.
        generator: Source of the probes.
        chunk_size: Most columns in one product.
        progressbar: Whether to show value and standard error.
    """

    num_matvecs: int
    tol: float | None
    generator: Generator
    chunk_size: int
    progressbar: bool


def options(
    A: LinearOperator,
    num_matvecs: int | None,
    tol: float | None,
    generator: Generator | None,
    chunk_size: int,
    progressbar: bool,
    *,
    default: int = 100,
    least: int = 2,
) -> Options:
    """The user's options, checked.

    Args:
        A: The matrix.
        num_matvecs: Most products, or ``None``.
        tol: Largest standard error, or ``None``.
        generator: Source of the probes, or ``None`` for a fresh one.
        chunk_size: Most columns in one product.
        progressbar: Whether to show progress.
        default: Products if neither their number nor a tolerance is given.
        least: Products that the estimator needs for an error bar.

    Raises:
        TypeError: If something is of the wrong kind.
        ValueError: If something is of the wrong value.
    """
    if num_matvecs is None:
        limit = default if tol is None else UNLIMITED
    elif _is_count(num_matvecs) and num_matvecs >= least:
        limit = int(num_matvecs)
    else:
        raise ValueError(
            f"Expected num_matvecs as an integer, at least {least} for an error bar, got "
            f"{num_matvecs!r}."
        )
    if tol is not None and (
        not isinstance(tol, Real) or isinstance(tol, bool) or not 0 < tol < math.inf
    ):
        raise ValueError(
            f"Expected tol as a positive number, a standard error, got {tol!r}."
        )
    if not _is_count(chunk_size) or chunk_size < 1:
        raise ValueError(f"Expected chunk_size as a positive integer, got {chunk_size!r}.")
    generator = source(generator, device=A.device)
    return Options(limit, tol, generator, int(chunk_size), progressbar)


def check_square(A: LinearOperator, name: str) -> None:
    """Refuse rectangular matrices."""
    M, N = A.shape
    if M != N:
        raise ValueError(f"{name} needs a square matrix, got one of shape ({M}, {N}).")


def check_symmetric(A: LinearOperator, name: str) -> None:
    """Refuse operators that are not tagged as symmetric."""
    check_square(A, name)
    if not A.symmetric:
        raise ValueError(
            f"{name} needs a symmetric operator; if you know that it is, say "
            "assume_symmetric(A)."
        )


def check_psd(A: LinearOperator, name: str) -> None:
    """Refuse operators that are not tagged as positive semi-definite."""
    check_square(A, name)
    if not A.psd:
        raise ValueError(
            f"{name} needs a psd operator; if you know that it is, say assume_psd(A)."
        )


def check_damping(damping: object, *, positive: bool) -> float:
    """A finite number, not negative."""
    is_number = isinstance(damping, Real) and not isinstance(damping, bool)
    value = float(damping) if is_number else math.nan  # type: ignore[arg-type]
    if not 0 <= value < math.inf or (positive and value == 0):
        kind = "positive" if positive else "non-negative"
        raise ValueError(f"Expected damping as a {kind} number, got {damping!r}.")
    return value


def _is_count(number: object) -> bool:
    return isinstance(number, Integral) and not isinstance(number, bool)
