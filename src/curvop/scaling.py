"""Norms and squares without over- or underflow: of vectors divided by a power of two.

The results of a solver, spectrum or estimator for ``c A`` should follow from those for
``A``. Squares would prevent this: in single precision those of 1e-23 are zero, those of
1e20 infinite. Squares are therefore taken only of entries of the order of one, or in double
precision of numbers in single; everything else is of degree one in ``A``, in ``A⁻¹``, or
of degree zero. Division by a power of two is exact, so that if ``c`` is one the results are
the same to the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor

# The exponent bits of a number, and the type of integer to read them in.
EXPONENTS = {
    torch.float64: (torch.int64, 0x7FF << 52),
    torch.float32: (torch.int32, 0xFF << 23),
    torch.bfloat16: (torch.int16, 0xFF << 7),
    torch.float16: (torch.int16, 0x1F << 10),
}


def unit(V: Tensor, dim: int | tuple[int, ...] | None = None) -> Tensor:
    """The power of two next below the largest magnitude along ``dim``, which is kept.

    For zeros it is the least normal number, so that they may be divided by it. Unlike
    :func:`torch.ldexp`, this is exact.

    Args:
        V: Numbers.
        dim: The axis; ``None`` for all.

    >>> unit(torch.tensor([[3.0, -5.0], [1e-30, 0.0]]), dim=1).log2()
    tensor([[   2.],
            [-100.]])
    """
    tiny = torch.finfo(V.dtype).tiny
    if not V.numel():
        return torch.full_like(V.sum(dim, keepdim=dim is not None), tiny)
    peak = V.abs().amax(dim, keepdim=True) if dim is not None else V.abs().amax()
    integer, exponent = EXPONENTS[V.dtype]
    return peak.clamp(min=tiny).view(integer).bitwise_and(exponent).view(V.dtype)


def norms(V: Tensor, dim: int) -> Tensor:
    """Norms along ``dim``.

    >>> norms(torch.tensor([[3e-30, 4e-30], [0.0, 0.0]]), dim=1)
    tensor([5.0000e-30, 0.0000e+00])
    """
    if V.dtype != torch.float64:  # which has room for squares of the others
        wide: Tensor = torch.linalg.vector_norm(V.double(), dim=dim)
        return wide.to(V.dtype)
    size = unit(V, dim)
    scaled: Tensor = torch.linalg.vector_norm(V / size, dim=dim)
    return scaled * size.squeeze(dim)


def norm(V: Tensor) -> Tensor:
    """Norm of all entries.

    >>> norm(torch.tensor([3e30, 4e30]))
    tensor(5.0000e+30)
    """
    return norms(V.reshape(1, -1), 1)[0]
