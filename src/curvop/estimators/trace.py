"""The trace, with its standard error."""

from __future__ import annotations

import os
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from curvop.checkpoint import Checkpoint
from curvop.estimate import Estimate
from curvop.estimators.hutch_pp import HutchPP
from curvop.estimators.monte_carlo import Samples, Sampling, SignProbes, UnitVectors
from curvop.estimators.options import check_square, options
from curvop.estimators.products import multiply, quadratic_forms
from curvop.estimators.run import Method, run
from curvop.estimators.xtrace import XTrace
from curvop.operators import as_operator

METHODS = ("hutch++", "hutchinson", "xtrace")
FIRST_SKETCH = 10  # columns of the sketch where only the tolerance limits the run


def trace(
    A: Any,
    *,
    method: Literal["hutch++", "hutchinson", "xtrace"] = "hutch++",
    num_matvecs: int | None = None,
    tol: float | None = None,
    generator: Generator | None = None,
    chunk_size: int = 8,
    checkpoint: str | os.PathLike[str] | None = None,
    progressbar: bool = False,
) -> Estimate:
    r"""Estimate the trace of a square matrix.

    - ``"hutchinson"`` (Hutchinson, 1990): the mean of ``vᵀ A v`` over random signs
      ``v``, with the variance :math:`2 \sum_{i≠j} ((A_{ij} + A_{ji}) / 2)^2` each. It
      keeps no vectors.
    - ``"hutch++"`` (Meyer, Musco, Musco, Woodruff, 2021): the trace on the range of a
      sketch with a third of the products, the rest of it by probes. Better by orders of
      magnitude where the spectrum decays. It keeps a vector for three products.
    - ``"xtrace"`` (Epperly, Tropp, Webber, 2024): each probe is used both in the sketch
      for the others and against it. The best for a fast decay; keeps three vectors for
      two products.

    With as many products as columns the trace is computed exactly, whatever the method.

    Args:
        A: A square operator, or whatever :func:`as_operator` understands.
        method: How to estimate.
        num_matvecs: Most products; 100 if neither they nor ``tol`` are given.
        tol: Stop when the standard error, absolute, is at most this. Without
            ``num_matvecs``, products are taken until it is.
        generator: Source of the probes. By default a fresh one, seeded by the operating
            system: each call draws others. No global generator is touched.
        chunk_size: Most columns in one product. Nothing but rounding depends on it.
        checkpoint: File that the state is written to every few products, and that the
            run is continued from if it exists. With it, Ctrl-C returns the estimate so
            far.
        progressbar: Whether to show value and standard error.

    Returns:
        The trace with its standard error, to which rounding contributes. From few
        samples the error is widened, so that three of them cover the truth as often as
        from many. A checkpoint takes one product more, which is not counted.

    Raises:
        TypeError: If something is of the wrong kind.
        ValueError: If the matrix is not square, something does not fit, a product is not
            finite, or the checkpoint is of another problem.

    >>> import torch
    >>> A = torch.diag(torch.tensor([3.0, 2.0, 1.0]))
    >>> trace(A).value
    6.0
    """
    A = as_operator(A)
    check_square(A, "trace")
    if method not in METHODS:
        raise ValueError(f"Expected method as one of {METHODS}, got {method!r}.")
    least = {"hutch++": 4, "hutchinson": 2, "xtrace": 4}[method]
    chosen = options(
        A,
        num_matvecs=num_matvecs,
        tol=tol,
        generator=generator,
        chunk_size=chunk_size,
        progressbar=progressbar,
        default=100,
        least=least,
    )

    problem = {
        "algorithm": "trace",
        "method": method,
        "moments": "in units",
        "num_matvecs": num_matvecs,
        "tol": tol,
        "generator": None if generator is None else generator.get_state(),
    }

    def form(V: Tensor, before: int) -> Samples:
        values, rounding = quadratic_forms(V, multiply(A, V, before), A.dtype)
        return Samples(values, rounding, V.shape[1])

    like = torch.zeros((), dtype=torch.float64)
    sampling = Sampling(A, form, like, chosen.chunk_size)
    sampler: Method = SignProbes(sampling)
    if method == "xtrace":
        sampler = XTrace(A, chosen.chunk_size)
    elif method == "hutch++":
        size = FIRST_SKETCH if tol is not None else chosen.num_matvecs // 3
        sampler = HutchPP(A, size, chosen.chunk_size)
    value, error, n = run(
        sampler,
        UnitVectors(sampling),
        A.shape[1],
        chosen,
        Checkpoint(checkpoint, A, problem),
        interruptible=checkpoint is not None,
    )
    return Estimate(float(value), float(error), n)
