"""The diagonal, with the standard error of each entry."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Generator, Tensor

from curvop.checkpoint import Checkpoint
from curvop.estimate import DiagonalEstimate
from curvop.estimators.exchangeable import XDiag
from curvop.estimators.monte_carlo import Samples, Sampling, SignProbes, UnitVectors
from curvop.estimators.options import check_square, options
from curvop.estimators.probes import ROUNDING, multiply, working_dtype
from curvop.estimators.sequential import Estimator, run
from curvop.operators import as_operator

METHODS = ("xdiag", "hutchinson")


def diagonal(
    A: Any,
    *,
    method: Literal["xdiag", "hutchinson"] = "xdiag",
    num_matvecs: int | None = None,
    tol: float | None = None,
    generator: Generator | None = None,
    chunk_size: int = 8,
    progressbar: bool = False,
) -> DiagonalEstimate:
    r"""Estimate the diagonal of a square matrix.

    - ``"hutchinson"`` (Bekas, Kokiopoulou, Saad, 2007): the mean of ``v ∘ A v`` over
      random signs ``v``, with the variance :math:`\sum_{j≠i} A_{ij}^2` each. It keeps
      two vectors.
    - ``"xdiag"`` (Epperly, Tropp, Webber, 2024): each probe is used in a sketch for the
      others, and to estimate what their sketch leaves. Better if the spectrum decays. It
      multiplies with the transposed matrix as well, and keeps three vectors for two
      products.

    With as many products as columns the diagonal is computed exactly.

    Args:
        A: A square operator, or anything that :func:`as_operator` accepts.
        method: How to estimate.
        num_matvecs: See :func:`trace`, also for what follows.
        tol: Stop when the largest of the standard errors, absolute, is at most this.
        generator: Source of the probes.
        chunk_size: Most columns in one product.
        progressbar: Whether to show the trace and the largest standard error.

    Returns:
        Entries and their standard errors, ``[N]`` each, of the dtype and on the device
        of the matrix (in single precision for half). From few samples the errors are
        widened, so that three of them cover the truth as often as from many.

    Raises:
        TypeError: If something is of the wrong kind.
        ValueError: If the matrix is not square, something does not fit, or a product is
            not finite.

    >>> import torch
    >>> A = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    >>> diagonal(A).value
    tensor([3., 2., 1.])
    """
    A = as_operator(A)
    check_square(A, "diagonal")
    if method not in METHODS:
        raise ValueError(f"Expected method as one of {METHODS}, got {method!r}.")
    least = {"xdiag": 4, "hutchinson": 2}[method]
    chosen = options(A, num_matvecs, tol, generator, chunk_size, progressbar, least=least)

    def form(V: Tensor, before: int) -> Samples:
        values = (V * multiply(A, V, before)).mT
        rounding = ROUNDING * torch.finfo(A.dtype).eps * values.abs()
        return Samples(values, rounding, V.shape[1])

    like = torch.zeros(A.shape[1], dtype=working_dtype(A), device=A.device)
    sampling = Sampling(A, form, like, chosen.chunk_size)
    sampler: Estimator = SignProbes(sampling)
    if method == "xdiag":
        sampler = XDiag(A, chosen.chunk_size)
    value, error, n = run(
        sampler, UnitVectors(sampling), A.shape[1], chosen, Checkpoint(None)
    )
    return DiagonalEstimate(value, error, n, A.input_space)
