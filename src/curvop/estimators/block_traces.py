"""The trace of each diagonal block, all from the same probes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from curvop.estimate import Estimate, block_keys
from curvop.estimators.monte_carlo import Samples, Sampling, mean_over_probes
from curvop.estimators.options import check_square, options
from curvop.estimators.products import multiply, quadratic_forms
from curvop.operators import as_operator


def block_traces(
    A: Any,
    *,
    num_matvecs: int | None = None,
    tol: float | None = None,
    generator: Generator | None = None,
    chunk_size: int = 8,
    progressbar: bool = False,
) -> dict[str | int, Estimate]:
    r"""Estimate the trace of each diagonal block: of each parameter, say.

    .. math:: \operatorname{tr} A_{bb} ≈ \frac{1}{m} \sum_{i=1}^m v_{i,b}^⊤ (A v_i)_b

    over random signs ``vᵢ`` (Hutchinson, 1990): one product serves all blocks. Its
    variance counts all of ``A_b``, the rows of the block, and not only its square part.
    With as many products as columns the traces are computed exactly.

    Args:
        A: A square operator of equal input and output blocks.
        num_matvecs: Most products; 100 if neither they nor ``tol`` are given.
        tol: Stop when the largest of the standard errors, absolute, is at most this.
            Without ``num_matvecs``, products are taken until it is.
        generator: Source of the probes. By default a fresh one, seeded by the operating
            system: each call draws others. No global generator is touched.
        chunk_size: Most columns in one product. Nothing but rounding depends on it.
        progressbar: Whether to show the sum and the largest standard error.

    Returns:
        An estimate for each block, in order, by name; by position where the blocks have
        no names. The number of products is that of all together. From few samples the
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
    chosen = options(
        A,
        num_matvecs=num_matvecs,
        tol=tol,
        generator=generator,
        chunk_size=chunk_size,
        progressbar=progressbar,
        default=100,
        least=2,
    )
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
