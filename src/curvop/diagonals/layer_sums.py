"""Sums of squared gradients over data, from inputs and gradients of layers.

The gradient of datum ``n`` for the weight of a linear layer is ``Σ_t δ_{n,t} ⊗ z_{n,t}``:
the layer's input ``z`` and the gradient ``δ`` of its output, summed over positions ``t`` of
all its calls. A convolution is a linear layer over patches, in groups.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor

from curvop.diagonals.output_columns import squares
from curvop.layers import Call

# Gradients of several data and columns are held up to so many numbers.
NUMBERS = 2**18
# Pairs of positions up to so many.
PAIRS = 2**24
# Squaring a number and adding it takes as long as so many multiplications of a product.
STREAM = 8

Gradients = Mapping[int, Tensor]  # of the layers' outputs, [k, N, *shape] each


class LayerSum(ABC):
    """``Σ_n Σ_r σ g²`` for one parameter, over columns that come in chunks.

    Attributes:
        edges: Positions of the calls among the gradients.
    """

    edges: list[int]

    @abstractmethod
    def add(self, deltas: Gradients, signs: Tensor | None) -> None:
        """Add some columns."""

    @abstractmethod
    def total(self) -> Tensor:
        """The sum in the shape of the parameter."""


@final
class Weight(LayerSum):
    """The weight of linear layers or convolutions.

    Where positions are few, what is kept of the columns is ``M = Σ_r σ δ_t δ_t'`` for each
    datum and pair of positions: squares are then taken once, not for every column. With one
    position this is ``(Σ_r σ δ²)ᵀ z²``.
    """

    def __init__(
        self, shape: torch.Size, edges: list[int], calls: list[Call], R: int
    ) -> None:
        self.edges, self._shape, self._calls = edges, shape, calls
        z = calls[0].z
        self._sum = _wide(z).new_zeros(shape[0], shape[1:].numel())
        N, i, T = z.shape[0], self._sum.shape[1], sum(positions(c) for c in calls)
        # multiplications for an output and a datum: of each column, or of pairs and once
        by_column, by_pairs = R * (T + STREAM) * i, T * T * (STREAM * R + i)
        fits = N * shape[0] * T * T <= PAIRS
        self._keeps_pairs = T == 1 or (by_pairs < by_column and fits)
        self._rows = max(1, NUMBERS // max(self._sum.numel(), T * i))
        self._M: Tensor | None = None

    def add(self, deltas: Gradients, signs: Tensor | None) -> None:
        """Add some columns."""
        calls = zip(self.edges, self._calls, strict=True)
        u = _cat([by_position(deltas[e], c) for e, c in calls], 3)  # [k, N, g, T, o]
        if self._keeps_pairs:
            M = pairs(u, signs)
            self._M = M if self._M is None else self._M.add_(M)
            return
        for n in range(0, u.shape[1], self._rows):
            rows = slice(n, n + self._rows)
            z = self._patches(rows)
            for r, delta in enumerate(u[:, rows]):
                some = None if signs is None else signs[r, rows]
                self._sum += squares(delta.mT @ z, some).view_as(self._sum)

    def total(self) -> Tensor:
        """The sum in the shape of the weight."""
        if self._M is not None:
            self._sum += of_pairs(self._M, self._patches(slice(None)))
        return self._sum.view(self._shape)

    def _patches(self, rows: slice) -> Tensor:
        """What the weight is multiplied with in all calls, ``[n, g, T, i]``."""
        return _cat([patches(c, rows) for c in self._calls], 2)


def pairs(u: Tensor, signs: Tensor | None) -> Tensor:
    """``Σ_k σ u_t u_t'`` of ``[k, N, g, T, o]`` for each datum and output."""
    u = _wide(u)
    if u.shape[3] == 1:  # [N, g, o, 1, 1]
        signed = u.square() if signs is None else u.square() * signs[..., None, None, None]
        return signed.sum(0)[:, :, 0, :, None, None]
    u = u.permute(1, 2, 4, 3, 0)  # [N, g, o, T, k]
    if signs is None:
        return u @ u.mT
    return u * signs.T[:, None, None, None] @ u.mT


def of_pairs(M: Tensor, z: Tensor) -> Tensor:
    """``Σ_{n,t,t'} M_{n,o,t,t'} z_{n,t,i} z_{n,t',i}``, ``[g·o, i]``."""
    N, g, o, T, _ = M.shape
    z = z.to(M.dtype)
    if T == 1:  # one product for all data
        return torch.einsum("ngo,ngi->goi", M[..., 0, 0], z[:, :, 0].square()).flatten(0, 1)
    i = z.shape[-1]
    out = M.new_zeros(g, o, i)
    step = max(1, NUMBERS // (g * T * T * i))
    for n in range(0, N, step):
        some = z[n : n + step]  # [n, g, T, i]
        zz = (some[:, :, :, None] * some[:, :, None]).flatten(2, 3)  # [n, g, T·T, i]
        out += (M[n : n + step].flatten(3) @ zz).sum(0)
    return out.flatten(0, 1)


def positions(call: Call) -> int:
    """At how many positions a weight is applied for one datum."""
    outputs = call.shape[-1] if call.function is F.linear else call.shape[1]
    return call.size // outputs


def patches(call: Call, rows: slice = slice(None)) -> Tensor:
    """What the rows of a weight are multiplied with for some data, ``[n, g, T, i]``."""
    z = call.z.detach()[rows]
    if call.function is F.linear:
        return z.reshape(z.shape[0], 1, -1, z.shape[-1])
    kernel = call.weight_shape[2:]
    d = len(kernel)
    stride, padding, dilation = (
        [n] * d if isinstance(n, int) else list(n)
        for n in (call.options.get(k, v) for k, v in _DEFAULTS)
    )
    z = F.pad(z, [n for p in reversed(padding) for n in (p, p)])
    for axis, (k, s, a) in enumerate(zip(kernel, stride, dilation, strict=True)):
        z = z.unfold(2 + axis, a * (k - 1) + 1, s)[..., ::a]
    N, C = z.shape[:2]
    g = call.options.get("groups", 1)
    z = z.permute(0, 1, *range(2 + d, 2 + 2 * d), *range(2, 2 + d))  # [N, C, *k, *t]
    return z.reshape(N, g, C // g * kernel.numel(), -1).mT


_DEFAULTS = (("stride", 1), ("padding", 0), ("dilation", 1))


def by_position(delta: Tensor, call: Call) -> Tensor:
    """Gradients of a layer's output, ``[k, N, *shape]``, as ``[k, N, g, T, o]``."""
    k, N = delta.shape[:2]
    if call.function is F.linear:
        return delta.reshape(k, N, 1, -1, delta.shape[-1])
    g = call.options.get("groups", 1)
    return delta.reshape(k, N, g, delta.shape[2] // g, -1).mT


def as_gradient(u: Tensor, call: Call) -> Tensor:
    """The inverse of :func:`by_position`."""
    u = u if call.function is F.linear else u.mT
    return u.reshape(len(u), *call.shape)


@final
class Entries(LayerSum):
    """Scales and shifts: gradients ``Σ δ z`` and ``Σ δ`` over positions.

    Args:
        shape: Of the parameter.
        edges: Positions of the calls among the gradients.
        calls: For each the first axis of its output that belongs to the parameter, and
            what the scale multiplies; ``None`` for a shift.
    """

    def __init__(
        self, shape: torch.Size, edges: list[int], calls: list[tuple[int, Tensor | None]]
    ) -> None:
        self.edges, self._calls, self._shape = edges, calls, shape
        self._sum: Tensor | float = 0.0

    def add(self, deltas: Gradients, signs: Tensor | None) -> None:
        """Add some columns."""
        g: Any = 0
        for e, (axis, z) in zip(self.edges, self._calls, strict=True):
            u = deltas[e] if z is None else deltas[e] * z
            mine = range(axis + 1, axis + 1 + len(self._shape))
            over = [i for i in range(2, u.ndim) if i not in mine]
            g = g + (u.sum(over) if over else u)
        self._sum = self._sum + squares(
            g.flatten(0, 1), None if signs is None else signs.flatten()
        )

    def total(self) -> Tensor:
        """The sum in the shape of the parameter."""
        assert isinstance(self._sum, Tensor)
        return self._sum


@final
class Table(LayerSum):
    """The weight of embeddings: of each datum, gradients of equal tokens are summed."""

    def __init__(
        self, shape: torch.Size, edges: list[int], ids: list[Tensor], padding: int | None
    ) -> None:
        self.edges, self._shape = edges, shape
        tokens = torch.cat([i.flatten(1) for i in ids], 1)  # [N, T]
        N, V = tokens.shape[0], shape[0]
        keys = tokens + V * torch.arange(N, device=tokens.device)[:, None]
        self._keys, self._where = keys.flatten().unique(return_inverse=True)
        self._padding = padding
        self._sum: Tensor | float = 0.0

    def add(self, deltas: Gradients, signs: Tensor | None) -> None:
        """Add some columns."""
        d = self._shape[1]
        N = deltas[self.edges[0]].shape[1]
        u = torch.cat(
            [deltas[e].reshape(-1, N, deltas[e][0, 0].numel() // d, d) for e in self.edges],
            2,
        ).flatten(1, 2)  # [k, N·T, d]
        G = u.new_zeros(len(u), len(self._keys), d).index_add_(1, self._where, u)
        of_key = None if signs is None else signs[:, self._keys // self._shape[0], None]
        G = _wide(G).square()
        self._sum = self._sum + (G if of_key is None else G * of_key).sum(0)

    def total(self) -> Tensor:
        """The sum in the shape of the weight."""
        assert isinstance(self._sum, Tensor)
        out = self._sum.new_zeros(self._shape)
        out.index_add_(0, self._keys % self._shape[0], self._sum)
        if self._padding is not None:
            out[self._padding] = 0
        return out


def _cat(parts: Sequence[Tensor], axis: int) -> Tensor:
    """Without a copy where there is one part."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), axis)


def _wide(t: Tensor) -> Tensor:
    """In single precision at least."""
    return t.to(torch.promote_types(t.dtype, torch.float32))
