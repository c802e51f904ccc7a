"""Matrices with known spectra, and operators that watch or disturb what is multiplied."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from curvop import LinearOperator
from curvop.operators import Blocks, Space
from tests.comparing import random


def eye(N: int) -> Tensor:
    """The identity in double precision."""
    return torch.eye(N, dtype=torch.float64)


def with_spectrum(values: Tensor, seed: int = 1) -> Tensor:
    """A symmetric matrix with these eigenvalues."""
    N = len(values)
    Q = torch.linalg.qr(random(N, N, seed=seed))[0]
    A = (Q * values) @ Q.T
    return (A + A.T) / 2


def positive(N: int, condition: float, seed: int = 1) -> Tensor:
    """Eigenvalues spread evenly on a logarithmic scale from 1 down."""
    values = torch.logspace(0, -math.log10(condition), N, dtype=torch.float64)
    return with_spectrum(values, seed)


def indefinite(N: int, negative: int = 60, smallest: float = 1e-2) -> Tensor:
    """Eigenvalues of both signs, none close to zero."""
    low = math.log10(smallest)
    down = -torch.logspace(0, low, negative, dtype=torch.float64)
    up = torch.logspace(1, low, N - negative, dtype=torch.float64)
    return with_spectrum(torch.cat([down, up]))


def relative_residual(A: Tensor, x: Tensor, b: Tensor) -> float:
    """The largest over the columns, in double precision, by a dense product."""
    A, x, b = A.double(), x.double(), b.double()
    gap = torch.linalg.vector_norm(b - A @ x, dim=0)
    return float((gap / torch.linalg.vector_norm(b, dim=0)).max())


class Watched(LinearOperator):
    """A dense psd or symmetric matrix that counts products and columns.

    ``at`` maps the number of a product to what to do with its result.
    """

    def __init__(
        self,
        A: Tensor,
        *,
        psd: bool = True,
        at: dict[int, Callable[[Tensor], Tensor]] | None = None,
    ) -> None:
        space = Space((A.shape[:1],))
        super().__init__(
            space, space, dtype=A.dtype, device=A.device, symmetric=True, psd=psd
        )
        self.matrix = A
        self.at = at or {}
        self.columns: list[int] = []

    @property
    def products(self) -> int:
        return len(self.columns)

    def _matmat(self, M: Blocks) -> Blocks:
        self.columns.append(M[0].shape[-1])
        out = self.matrix @ M[0]
        return [self.at.get(self.products, lambda AM: AM)(out)]

    def _transpose(self) -> LinearOperator:
        return self


def spoiled(value: float) -> Callable[[Tensor], Tensor]:
    """Put a value into a product."""

    def spoil(AM: Tensor) -> Tensor:
        AM = AM.clone()
        AM[0] = value
        return AM

    return spoil


def interrupted(_: Tensor) -> Tensor:
    """What Ctrl-C does inside of a product."""
    raise KeyboardInterrupt
