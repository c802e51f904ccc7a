"""The inverse of the diagonal as preconditioner."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from curvop.generators import source
from curvop.operators import (
    DiagonalLinearOperator,
    LinearOperator,
    Vector,
    admit,
    as_operator,
    read,
)
from curvop.scaling import norms
from curvop.solvers.probes import signs
from curvop.solvers.system import blocks_of, check_count, check_number, rows_of, times

# Probes that are multiplied at once.
CHUNK = 16


def jacobi_preconditioner(
    A: Any,
    diagonal: Vector | None = None,
    *,
    damping: float = 0.0,
    num_probes: int = 64,
    generator: Generator | None = None,
) -> DiagonalLinearOperator:
    r"""Precondition ``A + damping I`` by its diagonal.

    .. math:: M = \operatorname{diag}(d + \text{damping})^{-1}

    Without a diagonal it is estimated from probes ``z`` of signs,

    .. math:: d ≈ \frac{1}{m} \sum_{i=1}^m z_i ∘ A z_i

    (Bekas, Kokiopoulou and Saad, "An estimator for the diagonal of a matrix", 2007).
    An entry below its standard error is raised to it; an exact one that is not positive
    to the smallest positive one.

    Args:
        A: The matrix ``[N, N]``, without the damping.
        diagonal: Its diagonal, if it is known: ``[N]``, blocks, or a dict of blocks.
        damping: What is added to the diagonal of ``A`` in the system to solve.
        num_probes: Number ``m`` of products for the estimate; at least 2.
        generator: Source of the probes. By default a fresh one, seeded by the operating
            system. No global generator is touched.

    Returns:
        A positive definite operator, for ``M=`` of :func:`~curvop.cg`.

    Raises:
        TypeError: If something is of the wrong kind or dtype.
        ValueError: If something does not fit, or the diagonal is nowhere positive.

    >>> from curvop import jacobi_preconditioner
    >>> A = torch.tensor([[4.0, 1.0], [1.0, 2.0]])
    >>> jacobi_preconditioner(A, A.diagonal()) @ torch.ones(2)
    tensor([0.2500, 0.5000])
    """
    A = as_operator(A)
    if A.domain != A.codomain:
        raise ValueError(f"Expected a square matrix, got {A.shape}.")
    damping = check_number("damping", damping)
    if diagonal is None:
        d, floor = _estimated(A, check_count("num_probes", num_probes), generator)
    else:
        blocks, form = read(diagonal, A.input_space)
        if not form.is_vector:
            raise ValueError("Expected one diagonal, got columns.")
        d = rows_of([admit(b, A.dtype, A.device).detach() for b in blocks])[0]
        floor = torch.zeros_like(d)
    positive = d[d > 0]
    if not bool(d.isfinite().all()) or not len(positive):
        raise ValueError("Expected a finite diagonal with positive entries.")
    d = torch.maximum(d, floor)
    d = torch.where(d > 0, d, positive.min())
    inverse = blocks_of((1 / (d + damping))[None], A.input_space)
    return DiagonalLinearOperator([b.squeeze(-1) for b in inverse], names=A.domain_names)


def _estimated(
    A: LinearOperator, m: int, generator: Generator | None
) -> tuple[Tensor, Tensor]:
    """The diagonal and its standard error, from products with signs."""
    if m < 2:
        raise ValueError("Expected num_probes of at least 2, to see how they vary.")
    generator = source(generator)
    mean = torch.zeros(A.shape[1], dtype=A.dtype, device=A.device)
    spread = torch.zeros_like(mean)  # root of the sum of squared distances to the mean
    for i in range(0, m, CHUNK):
        k = min(CHUNK, m - i)
        Z = signs(k, A, generator)
        samples = Z * times(A, Z)
        own = samples.mean(0)
        shift = own - mean
        moved = shift * (i * k / (i + k)) ** 0.5
        mean = mean + shift * (k / (i + k))
        spread = torch.hypot(torch.hypot(spread, moved), norms(samples - own, 0))
    return mean, spread / (m * (m - 1)) ** 0.5
