"""Squares of vectors of any size: taken of the vector over a power of two.

What a solver, a spectrum or an estimator finds of ``c A`` follows from what it finds of
``A``. Only squares stand in the way: in single precision those of 1e-23 are zero, those
of 1e20 infinite. So no square is taken but of entries of the order of one, and everything
else is of degree one in ``A``, in ``A⁻¹``, or of degree zero. Division by a power of two
is exact, so that with a ``c`` that is one the results are the same to the last bit.
"""

from __future__ import annotations

import torch
from torch import Tensor


def unit(V: Tensor, dim: int | None = None) -> Tensor:
    """The power of two next below the largest magnitude along ``dim``; 1 where all are zero.

    Args:
        V: Numbers, in single or double precision.
        dim: Along which to look; ``None`` for all. It stays, with one entry.

    >>> unit(torch.tensor([[3.0, -5.0], [1e-30, 0.0]]), dim=1).log2()
    tensor([[   2.],
            [-100.]])
    """
    if not V.numel():
        one = V.new_ones(())
        return one if dim is None else one.expand([*V.sum(dim, keepdim=True).shape])
    peak = V.abs().amax() if dim is None else V.abs().amax(dim, keepdim=True)
    power = peak / (2 * torch.frexp(peak).mantissa)  # exact, other than by torch.ldexp
    return torch.where(peak > 0, power, 1.0)


def norms(V: Tensor, dim: int) -> Tensor:
    """Norms along ``dim``.

    >>> norms(torch.tensor([[3e-30, 4e-30], [0.0, 0.0]]), dim=1)
    tensor([5.0000e-30, 0.0000e+00])
    """
    size = unit(V, dim)
    scaled: Tensor = torch.linalg.vector_norm(V / size, dim=dim)
    return scaled * size.squeeze(dim)


def norm(V: Tensor) -> Tensor:
    """Norm of all entries.

    >>> norm(torch.tensor([3e30, 4e30]))
    tensor(5.0000e+30)
    """
    size = unit(V)
    scaled: Tensor = torch.linalg.vector_norm(V / size)
    return scaled * size
