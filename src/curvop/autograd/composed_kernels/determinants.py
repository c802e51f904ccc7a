"""The determinant, also of singular matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def det(A: Tensor, *, out: Tensor | None = None) -> Any:
    """By elimination with complete pivoting down to ``3 × 3``, then by the formula.

    Torch divides by all ``n`` pivots, the last of which vanish if the matrix is singular.
    Here a pivot vanishes only if the rank is less than ``n - 3``.
    """
    if out is not None:
        return NotImplemented
    value = A.new_ones(A.shape[:-2])
    for n in range(A.shape[-1], 3, -1):
        pivot, sign, A = _eliminated(A, n)
        value = value * pivot * sign
    return value * _POLYNOMIAL[A.shape[-1]](A)


def _eliminated(A: Tensor, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The largest entry, the sign of its minor, and what is left of the other rows."""
    where = A.detach().abs().flatten(-2).argmax(-1)[..., None, None]
    i, j = where // n, where % n
    others = torch.arange(n - 1, device=A.device)
    rows = (others + (others >= i)).mT.expand(*A.shape[:-2], n - 1, n)
    columns = (others + (others >= j)).expand(*A.shape[:-2], n, n - 1)
    row, rest = A.gather(-2, i.expand(*A.shape[:-2], 1, n)), A.gather(-2, rows)
    pivot, right = row.gather(-1, j), row.gather(-1, columns[..., :1, :])
    column = rest.gather(-1, j.expand(*A.shape[:-2], n - 1, 1))
    rest = rest.gather(-1, columns[..., 1:, :])
    rest = rest - column * (right / torch.where(pivot == 0, 1, pivot))
    sign = 1 - 2 * ((i + j) % 2)
    return pivot[..., 0, 0], sign[..., 0, 0], rest


def _of_none(A: Tensor) -> Tensor:
    return A.new_ones(A.shape[:-2])


def _of_one(A: Tensor) -> Tensor:
    return A[..., 0, 0]


def _of_two(A: Tensor) -> Tensor:
    return A[..., 0, 0] * A[..., 1, 1] - A[..., 0, 1] * A[..., 1, 0]


def _of_three(A: Tensor) -> Tensor:
    """``a · (b × c)`` of the rows."""
    a, b, c = A.unbind(-2)
    volume: Tensor = (a * torch.linalg.cross(b, c)).sum(-1)
    return volume


_POLYNOMIAL: tuple[Callable[[Tensor], Tensor], ...]
_POLYNOMIAL = (_of_none, _of_one, _of_two, _of_three)

COMPOSED: dict[Any, Callable[..., Any]] = {
    torch.det: det,
    torch.linalg.det: det,
    Tensor.det: det,
}
