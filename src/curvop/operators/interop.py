"""Matrices of NumPy and SciPy as operators."""

from __future__ import annotations

import numpy
import torch
from scipy.sparse import sparray, spmatrix
from scipy.sparse.linalg import LinearOperator as SciPyOperator
from scipy.sparse.linalg import aslinearoperator
from torch import Size, Tensor

from curvop.operators.layout import Blocks, Space
from curvop.operators.linear_operator import (
    LinearOperator,
    TransposedLinearOperator,
    converted,
)
from curvop.operators.scipy_export import tensor
from curvop.operators.structured import DenseLinearOperator


@converted.register(numpy.ndarray)
def _(A: numpy.ndarray) -> LinearOperator:
    if A.dtype.kind != "f":
        raise TypeError(
            f"Expected a real floating-point array, got {A.dtype}. Convert it with "
            ".astype(float)."
        )
    return DenseLinearOperator(tensor(A))


@converted.register(SciPyOperator)
@converted.register(sparray)
@converted.register(spmatrix)
def _(A: SciPyOperator | sparray | spmatrix) -> LinearOperator:
    return SciPyLinearOperator(aslinearoperator(A))


class SciPyLinearOperator(LinearOperator):
    """A SciPy ``LinearOperator`` as an operator, on the CPU."""

    def __init__(self, A: SciPyOperator) -> None:
        dtype = numpy.dtype(A.dtype or numpy.float64)
        if dtype.kind != "f":
            raise TypeError(f"Expected a real floating-point matrix, got {dtype}.")
        M, N = A.shape
        super().__init__(
            Space((Size((N,)),)),
            Space((Size((M,)),)),
            dtype=torch.from_numpy(numpy.empty(0, dtype)).dtype,
            device=torch.device("cpu"),
        )
        self._A = A

    def _matmat(self, M: Blocks) -> Blocks:
        return [self._back(self._A.matmat(M[0].numpy()))]

    def _rmatmat(self, M: Blocks) -> Blocks:
        return [self._back(self._A.rmatmat(M[0].numpy()))]

    def _back(self, AM: numpy.ndarray) -> Tensor:
        return torch.from_numpy(numpy.ascontiguousarray(AM)).to(self.dtype)

    def _transpose(self) -> LinearOperator:
        return TransposedLinearOperator(self, self._rmatmat)
