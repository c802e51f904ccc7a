"""Operators for SciPy: products with NumPy arrays."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from numpy.typing import DTypeLike
from scipy.sparse.linalg import LinearOperator as SciPyOperator
from torch import Tensor


class SciPyExport(SciPyOperator):  # type: ignore[misc]
    """An operator ``A`` as a SciPy ``LinearOperator``; see ``to_scipy``."""

    def __init__(self, A: Any, dtype: DTypeLike | None = None) -> None:
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

    def _apply(self, A: Any, x: numpy.ndarray) -> numpy.ndarray:
        v = tensor(x).to(A.device)
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

    def _real(self, A: Any, v: Tensor) -> Tensor:
        Av: Tensor = A @ v.to(A.dtype)
        return Av.to(_exportable(A.dtype))


def tensor(x: numpy.ndarray) -> Tensor:
    """Copied if need be: torch has no negative strides and no read-only arrays."""
    return torch.from_numpy(numpy.require(x, requirements=["C", "W"]))


def _exportable(dtype: torch.dtype) -> torch.dtype:
    """NumPy has no bfloat16, and its float16 has no BLAS: export both as float32."""
    return torch.float32 if dtype.itemsize < 4 else dtype
