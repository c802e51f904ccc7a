"""To and from other libraries: tensors, NumPy, SciPy."""

from __future__ import annotations

from typing import Any

import numpy
import scipy.sparse
import torch
from numpy.typing import DTypeLike
from scipy.sparse.linalg import LinearOperator as SciPyOperator
from torch import Size, Tensor

from curvop.operators.algebra import TransposedLinearOperator
from curvop.operators.base import LinearOperator
from curvop.operators.layout import Blocks, Space
from curvop.operators.structured import DenseLinearOperator


def as_operator(A: Any) -> LinearOperator:
    """Whatever is a matrix, as an operator.

    Args:
        A: A tensor ``[M, N]``, NumPy array, SciPy sparse matrix, SciPy
            ``LinearOperator``, or one of ours, which is returned as it is.

    Returns:
        The operator. A dense matrix is tagged as symmetric if it is so but for rounding;
        SciPy's carry no tags: see :func:`assume_symmetric`.

    Raises:
        TypeError: If ``A`` is none of these, or not real floating point.
        ValueError: If it is not two-dimensional.

    >>> as_operator(torch.eye(2))
    <2x2 DenseLinearOperator, torch.float32, cpu, symmetric>
    """
    if isinstance(A, LinearOperator):
        return A
    if isinstance(A, Tensor):
        return DenseLinearOperator(A)
    if isinstance(A, numpy.ndarray):
        if A.dtype.kind != "f":
            raise TypeError(
                f"Expected a real floating-point array, got {A.dtype}. Convert it with "
                ".astype(float)."
            )
        return DenseLinearOperator(_tensor(A))
    if isinstance(A, SciPyOperator) or scipy.sparse.issparse(A):
        return SciPyLinearOperator(scipy.sparse.linalg.aslinearoperator(A))
    raise TypeError(
        "Expected a curvop operator, a tensor, a NumPy array or a SciPy matrix or "
        f"LinearOperator, got {type(A).__name__}."
    )


class SciPyLinearOperator(LinearOperator):
    """A SciPy ``LinearOperator`` as one of ours, on the CPU."""

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


class SciPyExport(SciPyOperator):  # type: ignore[misc]
    """One of our operators as a SciPy ``LinearOperator``; see ``to_scipy``."""

    def __init__(self, A: LinearOperator, dtype: DTypeLike | None = None) -> None:
        self._A = A
        own = torch.empty(0, dtype=_exportable(A.dtype)).numpy().dtype
        super().__init__(own if dtype is None else numpy.dtype(dtype), A.shape)

    def _matvec(self, x: numpy.ndarray) -> numpy.ndarray:
        return self._apply(self._A, x.reshape(-1))

    def _rmatvec(self, x: numpy.ndarray) -> numpy.ndarray:
        return self._apply(self._A.T, x.reshape(-1))

    def _matmat(self, X: numpy.ndarray) -> numpy.ndarray:
        return self._apply(self._A, X)

    def _rmatmat(self, X: numpy.ndarray) -> numpy.ndarray:
        return self._apply(self._A.T, X)

    def _apply(self, A: LinearOperator, x: numpy.ndarray) -> numpy.ndarray:
        v = _tensor(x).to(A.device)
        if v.is_complex():
            # as two real columns: half precision has no complex type of its own
            parts = torch.stack([v.real, v.imag], -1).reshape(v.shape[0], -1)
            Av = torch.view_as_complex(
                self._real(A, parts).reshape(A.shape[0], *v.shape[1:], 2).contiguous()
            )
            kind = numpy.result_type(self.dtype, numpy.complex64)
        else:
            Av, kind = self._real(A, v), self.dtype
        return numpy.asarray(Av.cpu().numpy(), dtype=kind)

    def _real(self, A: LinearOperator, v: Tensor) -> Tensor:
        Av: Tensor = A @ v.to(A.dtype)
        return Av.to(_exportable(A.dtype))


def _tensor(x: numpy.ndarray) -> Tensor:
    """Torch knows neither negative strides nor arrays that must not be written to."""
    return torch.from_numpy(numpy.require(x, requirements=["C", "W"]))


def _exportable(dtype: torch.dtype) -> torch.dtype:
    """NumPy has no bfloat16, and its float16 has no BLAS: export both as float32."""
    return torch.float32 if dtype.itemsize < 4 else dtype
