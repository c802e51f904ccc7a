"""The Frobenius norm, with its standard error."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from curvop.estimate import Estimate
from curvop.estimators.monte_carlo import Samples, Sampling, mean_over_probes
from curvop.estimators.options import options
from curvop.estimators.probes import ROUNDING, multiply
from curvop.operators import as_operator
from curvop.scaling import norms, unit


def frobenius_norm(
    A: Any,
    *,
    num_matvecs: int | None = None,
    tol: float | None = None,
    generator: Generator | None = None,
    chunk_size: int = 8,
    progressbar: bool = False,
) -> Estimate:
    r"""Estimate the Frobenius norm of a matrix, square or not.

    .. math:: \|A\|_F^2 = \operatorname{tr} A^⊤ A ≈ \frac{1}{m} \sum_{i=1}^m \|A v_i\|^2

    over random signs ``vᵢ`` (Hutchinson, 1990). The square root of the mean is reported,
    its error to first order. With as many products as columns the norm is computed
    exactly.

    Args:
        A: An operator, or anything that :func:`as_operator` accepts.
        num_matvecs: See :func:`trace`, also for what follows.
        tol: Stop when the standard error, absolute, is at most this.
        generator: Source of the probes.
        chunk_size: Most columns in one product.
        progressbar: Whether to show value and standard error.

    Returns:
        The norm with its standard error. From few samples the error is widened, so that
        three of them cover the truth as often as from many.

    Raises:
        TypeError: If something is of the wrong kind.
        ValueError: If something does not fit, or a product is not finite.

    >>> import torch
    >>> frobenius_norm(torch.diag(torch.tensor([3.0, 4.0]))).value
    5.0
    """
    A = as_operator(A)
    chosen = options(A, num_matvecs, tol, generator, chunk_size, progressbar)

    def form(V: Tensor, before: int) -> Samples:
        sizes = norms(multiply(A, V, before), 0).to("cpu", torch.float64)
        size = unit(sizes)  # squares may over- or underflow
        values = (sizes / size).square()
        rounding = ROUNDING * torch.finfo(A.dtype).eps * values
        return Samples(values, rounding, V.shape[1], size)

    like = torch.zeros((), dtype=torch.float64)
    sampling = Sampling(A, form, like, chosen.chunk_size, degree=2, finish=_root)
    value, error, n = mean_over_probes(sampling, chosen)
    return Estimate(float(value), float(error), n)


def _root(square: Tensor, error: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
    """The square root, with the error of ``√x`` at ``x``; none at 0."""
    root = square.sqrt()
    return root * unit, torch.where(square > 0, error / (2 * root), error) * unit
