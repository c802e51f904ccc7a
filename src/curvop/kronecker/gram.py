"""Sums of outer products: the symmetric half only."""

from __future__ import annotations

from torch import Tensor

# Below this size a matrix product in one piece is quicker than three of its four quarters.
WHOLE = 96


def add_gram(total: Tensor, X: Tensor) -> None:
    """Add ``X Xᵀ`` to ``total``, of which lower quarters are left out: see :func:`mirror`.

    With large matrices that saves a third of the multiplications.

    Args:
        total: Sum so far, ``[G, n, n]``.
        X: Columns, ``[G, n, m]``.
    """
    if X.dtype != total.dtype:
        X = X.to(total.dtype)
    G, n, _ = total.shape
    if G > 1:
        total.baddbmm_(X, X.mT)  # a grouped convolution: many small ones
    elif n <= WHOLE:
        total[0].addmm_(X[0], X[0].T)
    else:
        _add(total[0], X[0])


def _add(total: Tensor, X: Tensor) -> None:
    n = total.shape[0]
    if n <= WHOLE:
        total.addmm_(X, X.T)
        return
    h = n // 2
    _add(total[:h, :h], X[:h])
    total[:h, h:].addmm_(X[:h], X[h:].T)
    _add(total[h:, h:], X[h:])


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
