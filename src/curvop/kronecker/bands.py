"""``Σ z zᵀ`` over the patches of a convolution, without the products that repeat.

Patches overlap. With stride one along the first axis, the block of rows ``i`` and ``j`` of
the window is, over positions ``t``,

    Σ_t z_{t+i} z_{t+j}ᵀ = Σ_{u ∈ i + positions} z_u z_{u+j-i}ᵀ,

which depends on ``j - i`` alone, but for rows ``u`` at the border. Here ``z_u`` are the
patches along the other axes. For ``k`` rows that is ``k`` large products in place of the
``k (k + 1) / 2`` of the symmetric half.
"""

from __future__ import annotations

from typing import final

import torch
from einops import rearrange
from torch import Tensor

from curvop.kronecker.calls import MatrixCall
from curvop.kronecker.gram import add_gram, mirror

# Positions of a call from which on it repays to put the whole matrix together afterwards.
MANY = 2**10


def repeats(call: MatrixCall) -> bool:
    """Whether the patches of a call have many products in common."""
    if call.options is None:
        return False
    window = call.window()
    overlap = window.kernel[0] > 1 and window.stride[0] == 1
    return overlap and call.num_positions() >= MANY


@final
class Bands:
    """The blocks ``i ≤ j`` of a layer.

    Args:
        call: A call of the layer.
        like: A tensor of the dtype and device to sum in.
    """

    def __init__(self, call: MatrixCall, *, like: Tensor):
        k = call.window().kernel[0]
        self._rows, self._channels = k, call.shape[1]
        n = call.shape[1:].numel() // k
        self._total = like.new_zeros(k * (k + 1) // 2, call.groups, n, n)

    def add(self, call: MatrixCall) -> None:
        """All positions of a call."""
        window = call.window()
        k, by, before = self._rows, window.dilation[0], window.before[0]
        for z in call.rows():  # [G, n, H, m]
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
