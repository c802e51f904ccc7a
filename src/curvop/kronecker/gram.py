"""Sums of outer products: the symmetric half only."""

from __future__ import annotations

from torch import Tensor

# Below this size a matrix product in one piece is quicker than three of its four quarters.
WHOLE = 96


def add_gram(total: Tensor, X: Tensor, sign: int = 1) -> None:
    """Add ``± X Xᵀ`` to ``total``, without lower quarters: see :func:`mirror`.

    With large matrices that saves a third of the multiplications.

    Args:
        total: Sum so far, ``[G, n, n]``.
        X: Columns, ``[G, n, m]``.
        sign: 1, or -1 to subtract.
    """
    if X.dtype != total.dtype:
        X = X.to(total.dtype)
    G, n, _ = total.shape
    if G > 1:
        total.baddbmm_(X, X.mT, alpha=sign)  # a grouped convolution: many small ones
    elif n <= WHOLE:
        total[0].addmm_(X[0], X[0].T, alpha=sign)
    else:
        _add(total[0], X[0], sign)


def _add(total: Tensor, X: Tensor, sign: int) -> None:
    n = total.shape[0]
    if n <= WHOLE:
        total.addmm_(X, X.T, alpha=sign)
        return
    h = n // 2
    _add(total[:h, :h], X[:h], sign)
    total[:h, h:].addmm_(X[:h], X[h:].T, alpha=sign)
    _add(total[h:, h:], X[h:], sign)


def mirror(total: Tensor) -> Tensor:
    """Write what was left out, in place."""
    if total.shape[0] == 1:
        _mirror(total[0])
    return total


def _mirror(total: Tensor) -> None:
    n = total.shape[0]
    if n <= WHOLE:
        return
    h = n // 2
    _mirror(total[:h, :h])
    total[h:, :h] = total[:h, h:].T
    _mirror(total[h:, h:])
