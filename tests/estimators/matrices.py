"""Matrices of known spectrum, and operators that can be watched."""

from __future__ import annotations

from collections.abc import Callable

import numpy
import torch
from scipy.sparse.linalg import LinearOperator as SciPyOperator
from torch import Tensor

from curvop import DenseLinearOperator, LinearOperator, as_operator, assume_symmetric
from tests.comparing import random

N = 120
_i = torch.arange(N, dtype=torch.float64)

SPECTRA = {
    "flat": 1 + 2 * _i / N,
    "decaying": 0.8**_i,
    "indefinite": torch.where(_i < N / 4, -1.0, 1.0) * (1 + _i % 10),
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_spectrum(values: Tensor, dtype: torch.dtype = torch.float64) -> Tensor:
    """Symmetric, with these eigenvalues and random eigenvectors."""
    U = torch.linalg.qr(random(len(values), len(values), seed=7))[0]
    A = (U * values) @ U.T
    return ((A + A.T) / 2).to(dtype)


def operator(name: str, dtype: torch.dtype = torch.float64) -> LinearOperator:
    psd = bool((SPECTRA[name] >= 0).all())
    return DenseLinearOperator(with_spectrum(SPECTRA[name], dtype), psd=psd)


def watched(A: Tensor, on_product: Callable[[int], object]) -> LinearOperator:
    """A symmetric matrix that reports before each product how many columns it has.

    What it reports to may raise, or return a factor for the product.
    """

    def matmat(X: numpy.ndarray) -> numpy.ndarray:
        factor = on_product(1 if X.ndim == 1 else X.shape[1])
        return (A @ torch.from_numpy(X)).numpy() * (1.0 if factor is None else factor)

    return assume_symmetric(
        as_operator(
            SciPyOperator(A.shape, matvec=matmat, matmat=matmat, dtype=A.numpy().dtype)
        )
    )
