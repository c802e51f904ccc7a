"""Matrices with known spectra, and operators that watch their products."""

from __future__ import annotations

import torch
from torch import Size, Tensor

from curvop.operators import Blocks, LinearOperator, Space
from tests.comparing import random


def symmetric(spectrum: Tensor, seed: int = 0) -> Tensor:
    """A dense matrix with this spectrum and random eigenvectors."""
    spectrum = spectrum.double()
    N = len(spectrum)
    Q = torch.linalg.qr(random(N, N, seed=seed)).Q
    A = (Q * spectrum) @ Q.T
    return (A + A.T) / 2


def linspace(low: float, high: float, n: int) -> Tensor:
    return torch.linspace(low, high, n, dtype=torch.float64)


SPECTRA = {
    "condition 1e8": torch.logspace(-8, 0, 300, dtype=torch.float64),
    "60 negative": torch.cat([linspace(-1, -0.1, 60), linspace(0, 2, 440)]),
    "five-fold top": torch.cat([torch.ones(5), linspace(0, 0.9, 495)]).double(),
    "top and bottom multiple": torch.cat(
        [-torch.ones(3), linspace(-0.8, 0.9, 300), 0.95 * torch.ones(2), torch.ones(4)]
    ).double(),
    "rank 2": torch.cat([torch.tensor([2.0, -1.0]), torch.zeros(298)]).double(),
    "psd of rank 3": torch.cat([torch.tensor([3.0, 1.0, 1.0]), torch.zeros(97)]).double(),
    "identity": torch.ones(40, dtype=torch.float64),
    "zero": torch.zeros(40, dtype=torch.float64),
    "curvature": torch.cat([10 ** linspace(-6, -2, 790), linspace(0.1, 3, 10)]),
}


def expected(A: Tensor, k: int, which: str) -> Tensor:
    """The wanted eigenvalues, ascending, by a dense solver."""
    values = torch.linalg.eigvalsh(A)
    if which in ("LM", "SM"):
        order = values.abs().argsort(descending=which == "LM")
        return values[order[:k]].sort().values
    low = {"LA": 0, "SA": k, "BE": k // 2}[which]
    return torch.cat([values[:low], values[len(values) - (k - low) :]])


class Watched(LinearOperator):
    """A symmetric matrix that calls ``watch(count)`` before each product."""

    def __init__(self, A: Tensor, watch=lambda count: None) -> None:
        space = Space((Size((A.shape[0],)),))
        super().__init__(space, space, dtype=A.dtype, device=A.device, symmetric=True)
        self._A = A
        self._watch = watch
        self.seen = [0]  # columns multiplied so far

    def _matmat(self, M: Blocks) -> Blocks:
        self._watch(self.seen[0])
        self.seen[0] += M[0].shape[-1]
        return [self._A @ M[0]]

    def _transpose(self) -> LinearOperator:
        return self
