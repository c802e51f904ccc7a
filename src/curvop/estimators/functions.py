"""Traces of functions of a matrix: any, log-determinant, effective dimension."""

from __future__ import annotations

from typing import Any

from torch import Generator, Tensor

from curvop.estimate import Estimate
from curvop.estimators.options import (
    check_damping,
    check_psd,
    check_symmetric,
    options,
)
from curvop.estimators.quadrature import (
    FEWEST_PROBES,
    Function,
    enclosed,
    estimated,
    last_doubling,
)
from curvop.operators import as_operator

# Products of a quadrature: by default, and the least for an error bar.
PRODUCTS = {"default": 500, "least": 2 * FEWEST_PROBES}


def trace_function(
    A: Any,
    f: Function,
    *,
    num_matvecs: int | None = None,
    tol: float | None = None,
    generator: Generator | None = None,
    chunk_size: int = 8,
    progressbar: bool = False,
) -> Estimate:
    r"""Estimate ``tr f(A)`` of a symmetric matrix by stochastic Lanczos quadrature.

    .. math:: \operatorname{tr} f(A) ≈ \frac{N}{m} \sum_{i=1}^m
        \sum_j τ_{ij}^2 f(θ_{ij})

    (Ubaru, Chen, Saad, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature",
    2017), with nodes ``θ`` and weights ``τ²`` from Lanczos runs on random signs, which
    are fully reorthogonalised. A run ends when its truncation error is at most 0.1 % (or a
    quarter of ``tol``), or after a tenth of the products. The standard error includes the
    truncation error. That is estimated by the change from the last doubling of the steps,
    times the number of doublings until the Krylov space is the whole space: a bound if no
    later doubling changes more.

    A chunk keeps all vectors of its runs: ``chunk_size`` times the steps.

    Args:
        A: A symmetric operator, or anything that :func:`as_operator` accepts.
        f: The function, elementwise on a tensor in double precision; finite between the
            least and the largest eigenvalue.
        num_matvecs: Most products; 500 if neither they nor ``tol`` are given.
        tol: Stop when the standard error, absolute, is at most this. Without
            ``num_matvecs``, products are taken until it is.
        generator: Source of the probes. By default a fresh one, seeded by the operating
            system: each call draws others. No global generator is touched.
        chunk_size: Most columns in one product.
        progressbar: Whether to show value and standard error.

    Returns:
        The trace with its standard error, which combines the spread over the probes,
        truncation and rounding. From few probes it is widened, so that three standard
        errors cover the truth as often as from many.

    Raises:
        TypeError: If something is of the wrong kind.
        ValueError: If the matrix is not known to be symmetric, something does not fit, a
            product is not finite, or ``f`` is not.

    >>> import torch
    >>> A = torch.diag(torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64))
    >>> round(trace_function(A, torch.exp).value, 6)
    30.192875
    """
    A = as_operator(A)
    check_symmetric(A, "trace_function")
    if not callable(f):
        raise TypeError(f"Expected f as a function of a tensor, got {type(f).__name__}.")
    chosen = options(A, num_matvecs, tol, generator, chunk_size, progressbar, **PRODUCTS)
    return estimated(A, f, chosen, last_doubling)


def logdet(
    A: Any,
    *,
    damping: float = 0.0,
    num_matvecs: int | None = None,
    tol: float | None = None,
    generator: Generator | None = None,
    chunk_size: int = 8,
    progressbar: bool = False,
) -> Estimate:
    r"""Estimate ``log det (A + λ I)`` of a positive (semi-)definite matrix.

    .. math:: \log \det (A + λ I) = \operatorname{tr} \log (A + λ I)

    as in :func:`trace_function`. A large condition number takes many Lanczos steps, hence
    many products; damping reduces them. With damping, the truncation error is bounded, not
    only estimated, by the Gauss-Radau quadrature with a node at 0.

    Args:
        A: A psd operator, or anything that :func:`as_operator` accepts.
        damping: ``λ``, not negative; positive for a singular matrix.
        num_matvecs: See :func:`trace_function`, also for what follows.
        tol: Stop when the standard error, absolute, is at most this.
        generator: Source of the probes.
        chunk_size: Most columns in one product.
        progressbar: Whether to show value and standard error.

    Returns:
        The logarithm of the determinant with its standard error.

    Raises:
        TypeError: If something is of the wrong kind.
        ValueError: If the matrix is not known to be psd, is singular without damping,
            something does not fit, or a product is not finite.

    >>> import torch
    >>> from curvop import assume_psd
    >>> A = assume_psd(2 * torch.eye(5, dtype=torch.float64))
    >>> round(logdet(A).value / torch.tensor(2.0).log().item(), 6)
    5.0
    """
    A = as_operator(A)
    check_psd(A, "logdet")
    shift = check_damping(damping, positive=False)

    def log(x: Tensor) -> Tensor:
        x = x.clamp(min=0) + shift
        if (x == 0).any():
            raise ValueError(
                "Expected a positive definite matrix, got one that is singular up to "
                "rounding. Give a positive damping."
            )
        return x.log()

    chosen = options(A, num_matvecs, tol, generator, chunk_size, progressbar, **PRODUCTS)
    return estimated(A, log, chosen, enclosed if shift else last_doubling)


def effective_dimension(
    A: Any,
    damping: float,
    *,
    num_matvecs: int | None = None,
    tol: float | None = None,
    generator: Generator | None = None,
    chunk_size: int = 8,
    progressbar: bool = False,
) -> Estimate:
    r"""Estimate the number of directions in which a psd matrix exceeds the damping.

    .. math:: d(λ) = \operatorname{tr} A (A + λ I)^{-1} = \sum_i \frac{λ_i}{λ_i + λ}

    as in :func:`trace_function` (MacKay, "A practical Bayesian framework for
    backpropagation networks", 1992: the number of well-determined parameters).
    Truncation is bounded as for :func:`logdet`.

    Args:
        A: A psd operator, or anything that :func:`as_operator` accepts.
        damping: ``λ``, positive.
        num_matvecs: See :func:`trace_function`, also for what follows.
        tol: Stop when the standard error, absolute, is at most this.
        generator: Source of the probes.
        chunk_size: Most columns in one product.
        progressbar: Whether to show value and standard error.

    Returns:
        The effective dimension with its standard error.

    Raises:
        TypeError: If something is of the wrong kind.
        ValueError: If the matrix is not known to be psd, something does not fit, or a
            product is not finite.

    >>> import torch
    >>> from curvop import assume_psd
    >>> A = assume_psd(torch.diag(torch.tensor([1e6, 1.0, 1e-6], dtype=torch.float64)))
    >>> round(effective_dimension(A, 1.0).value, 3)
    1.5
    """
    A = as_operator(A)
    check_psd(A, "effective_dimension")
    shift = check_damping(damping, positive=True)

    def share(x: Tensor) -> Tensor:
        x = x.clamp(min=0)
        return x / (x + shift)

    chosen = options(A, num_matvecs, tol, generator, chunk_size, progressbar, **PRODUCTS)
    return estimated(A, share, chosen, enclosed)
