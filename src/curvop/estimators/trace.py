"""The trace, and the traces of diagonal blocks, with standard errors."""

from __future__ import annotations

import os
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from curvop.checkpoint import Checkpoint
from curvop.estimate import Estimate, block_keys
from curvop.estimators.exchangeable import XTrace
from curvop.estimators.hutch_pp import HutchPP
from curvop.estimators.monte_carlo import (
    Samples,
    Sampling,
    SignProbes,
    UnitVectors,
    mean_over_probes,
)
from curvop.estimators.options import check_square, options
from curvop.estimators.probes import multiply, quadratic_forms
from curvop.estimators.sequential import Estimator, run
from curvop.operators import as_operator

METHODS = ("hutch++", "hutchinson", "xtrace")
FIRST_SKETCH = 10  # columns of the sketch if only the tolerance limits the run


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
      magnitude if the spectrum decays. It keeps a vector for three products.
    - ``"xtrace"`` (Epperly, Tropp, Webber, 2024): each probe is used in a sketch for
      the others, and to estimate what their sketch leaves. The best for a fast decay; it
      keeps three vectors for two products.

    With as many products as columns the trace is computed exactly by every method.

    Args:
        A: A square operator, or anything that :func:`as_operator` accepts.
        method: How to estimate.
        num_matvecs: Most products; 100 if neither they nor ``tol`` are given.
        tol: Stop when the standard error, absolute, is at most this. Without
            ``num_matvecs``, products are taken until it is.
        generator: Source of the probes. By default a fresh one, seeded by the operating
            system: each call draws others. No global generator is touched.
        chunk_size: Most columns in one product. It changes rounding only.
        checkpoint: File that the state is written to every few products, and that the
            run is continued from if it exists. With it, Ctrl-C returns the estimate so
            far.
        progressbar: Whether to show value and standard error.

    Returns:
        The trace with its standard error, which includes rounding. From few samples it is
        widened, so that three standard errors cover the truth as often as from many. A
        checkpoint takes one product more, which is not counted.

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
    chosen = options(A, num_matvecs, tol, generator, chunk_size, progressbar, least=least)

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
    sampler: Estimator = SignProbes(sampling)
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


def block_traces(
    A: Any,
    *,
    num_matvecs: int | None = None,
    tol: float | None = None,
    generator: Generator | None = None,
    chunk_size: int = 8,
    progressbar: bool = False,
) -> dict[str | int, Estimate]:
    r"""Estimate the trace of each diagonal block, for instance of each parameter.

    .. math:: \operatorname{tr} A_{bb} ≈ \frac{1}{m} \sum_{i=1}^m v_{i,b}^⊤ (A v_i)_b

    over random signs ``vᵢ`` (Hutchinson, 1990): one product serves all blocks. The
    variance depends on all entries in the rows of the block, not only on the block.
    With as many products as columns the traces are computed exactly.

    Args:
        A: A square operator of equal input and output blocks.
        num_matvecs: See :func:`trace`, also for what follows.
        tol: Stop when the largest of the standard errors, absolute, is at most this.
        generator: Source of the probes.
        chunk_size: Most columns in one product.
        progressbar: Whether to show the sum and the largest standard error.

    Returns:
        An estimate for each block, in order, by name, or by position if blocks have no
        names. The number of products is that for all blocks together. From few samples the
        errors are widened, so that three of them cover the truth as often as from many.

    Raises:
        TypeError: If something is of the wrong kind.
        ValueError: If input and output blocks differ, something does not fit, or a
            product is not finite.

    >>> import torch
    >>> from curvop import DiagonalLinearOperator
    >>> d = [torch.tensor([1.0, 2.0]), torch.tensor([4.0])]
    >>> traces = block_traces(DiagonalLinearOperator(d, names=["weight", "bias"]))
    >>> {name: estimate.value for name, estimate in traces.items()}
    {'weight': 3.0, 'bias': 4.0}
    """
    A = as_operator(A)
    check_square(A, "block_traces")
    if A.domain != A.codomain:
        raise ValueError(
            "block_traces needs equal input and output blocks, got "
            f"{[tuple(s) for s in A.domain]} and {[tuple(s) for s in A.codomain]}."
        )
    chosen = options(A, num_matvecs, tol, generator, chunk_size, progressbar)
    sizes = [shape.numel() for shape in A.domain]

    def form(V: Tensor, before: int) -> Samples:
        AV = multiply(A, V, before)
        blocks = zip(V.split(sizes), AV.split(sizes), strict=True)
        values, rounding = zip(
            *(quadratic_forms(v, Av, A.dtype) for v, Av in blocks), strict=True
        )
        return Samples(torch.stack(values, 1), torch.stack(rounding, 1), V.shape[1])

    like = torch.zeros(len(sizes), dtype=torch.float64)
    sampling = Sampling(A, form, like, chosen.chunk_size)
    values, errors, n = mean_over_probes(sampling, chosen)
    return {
        key: Estimate(float(value), float(error), n)
        for key, value, error in zip(block_keys(A.input_space), values, errors, strict=True)
    }
