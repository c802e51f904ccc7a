"""Sums of outer products: the symmetric half only, and of patches what does not repeat."""

from __future__ import annotations

from typing import final

import torch
from einops import rearrange
from torch import Tensor

from curvop.layers import Convolution, MatrixCall

# Positions of a call from which on it repays to put the whole matrix together afterwards.
MANY = 2**10
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


def repeats(call: MatrixCall, N: int) -> bool:
    """Whether the patches of a call have many products in common."""
    if not isinstance(call, Convolution):
        return False
    overlap = call.window.kernel[0] > 1 and call.window.stride[0] == 1
    return overlap and N * call.num_positions(N) >= MANY


@final
class PatchGram:
    """``Σ z zᵀ`` over the patches of a convolution, without the products that repeat.

    Patches overlap. With stride one along the first axis, the block of rows ``i`` and ``j``
    of the window is, over positions ``t``,

        Σ_t z_{t+i} z_{t+j}ᵀ = Σ_{u ∈ i + positions} z_u z_{u+j-i}ᵀ,

    which depends on ``j - i`` alone, but for rows ``u`` at the border. Here ``z_u`` are the
    patches along the other axes. For ``k`` rows that is ``k`` large products in place of
    the ``k (k + 1) / 2`` of the symmetric half. Kept are the blocks ``i ≤ j``.

    Args:
        call: A call of the layer.
        like: A tensor of the dtype and device to sum in.
    """

    def __init__(self, call: Convolution, *, like: Tensor):
        k = call.window.kernel[0]
        self._rows, self._channels = k, call.weight_shape[1]
        n = call.input_size // k
        self._total = like.new_zeros(k * (k + 1) // 2, call.groups, n, n)

    def add(self, call: Convolution, N: int) -> None:
        """All positions of a call with ``N`` data."""
        window = call.window
        k, by, before = self._rows, window.dilation[0], window.before[0]
        for z in call.row_chunks(N):  # [G, n, H, m]
            H = z.shape[2]
            out = H + before + window.after[0] - by * (k - 1)
            z = z.to(self._total.dtype)
            blocks = iter(self._total)
            for d in range(k):
                last = max(H - d * by, 0)  # rows with a partner
                product = _Product(z, d * by)
                for i in range(k - d):
                    first = i * by - before
                    start, stop = (min(max(u, 0), last) for u in (first, first + out))
                    next(blocks).add_(product.over(start, stop))

    def unfolded(self) -> Tensor:
        """The whole matrix, ``[G, k n, k n]``."""
        G, n = self._total.shape[1:3]
        k, C, x = self._rows, self._channels, n // self._channels
        blocks = iter(self._total)
        upper = {(i, i + d): next(blocks) for d in range(k) for i in range(k - d)}
        whole = self._total.new_empty(G, C, k, x, C, k, x)
        for i in range(k):
            mirror(upper[i, i])
            row = [upper[i, j] if i <= j else upper[j, i].mT for j in range(k)]
            whole[:, :, i] = rearrange(row, "j G (C x) (D y) -> G C x D j y", C=C, D=C)
        return whole.reshape(G, k * n, k * n)


@final
class _Product:
    """``Σ_u z_u z_{u+shift}ᵀ`` over rows ``u``; a window of rows from the one before.

    Args:
        z: ``[G, n, H, m]``.
        shift: Rows between the factors; without, only the half that :func:`add_gram` adds.
    """

    def __init__(self, z: Tensor, shift: int):
        G, n, _, self._m = z.shape
        self._z, self._shift = z.flatten(2), shift * self._m
        self._sum = z.new_zeros(G, n, n)
        self._start = self._stop = 0

    def over(self, start: int, stop: int) -> Tensor:
        """The sum over the rows from ``start`` to ``stop``: they only move on."""
        if start - self._start + stop - self._stop > stop - start:  # little in common
            self._sum = torch.zeros_like(self._sum)
            self._start = self._stop = start
        self._add(self._stop, stop, 1)
        self._add(self._start, start, -1)
        self._start, self._stop = start, stop
        return self._sum

    def _add(self, start: int, stop: int, sign: int) -> None:
        if start >= stop:
            return
        a, b, s = start * self._m, stop * self._m, self._shift
        left, right = self._z[:, :, a:b], self._z[:, :, a + s : b + s]
        if s == 0:
            add_gram(self._sum, left, sign)
        else:
            self._sum.baddbmm_(left, right.mT, alpha=sign)
