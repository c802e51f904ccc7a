"""Sums of squared gradients over data, from inputs and gradients of layers.

The gradient of datum ``n`` for the weight of a linear layer is ``Σ_t δ_{n,t} ⊗ z_{n,t}``:
the layer's input ``z`` and the gradient ``δ`` of its output, summed over positions ``t`` of
all its calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from curvop.diagonals.output_columns import squares
from curvop.layers import Call, Calls, Embedding, MatrixCall

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


def layer_sums(noted: Calls, N: int, R: int) -> dict[int, LayerSum]:
    """A sum for each parameter that belongs to layers with the data leading.

    Args:
        noted: The calls of a forward pass.
        N: Number of data.
        R: Number of columns to come.
    """
    found = {i: _layer_sum(i, p, noted.calls, N, R) for i, p in enumerate(noted.params)}
    return {i: sums for i, sums in found.items() if sums is not None}


def _layer_sum(i: int, p: Tensor, calls: Sequence[Call], N: int, R: int) -> LayerSum | None:
    mine = {e: c for e, c in enumerate(calls) if i in c.positions}
    if not mine or any(c.leading != N or c.mixes_data for c in mine.values()):
        return None
    matrices = {
        e: c for e, c in mine.items() if isinstance(c, MatrixCall) and c.weight == i
    }
    tables = {e: c for e, c in mine.items() if isinstance(c, Embedding)}
    if len(matrices) == len(mine):
        return Weight(p.shape, matrices, N, R)
    if len(tables) == len(mine):
        is_one_table = len({c.padding for c in tables.values()}) == 1
        return Table(p.shape, tables, N) if is_one_table else None
    return None if matrices or tables else Entries(i, mine, N)


@final
class Weight(LayerSum):
    """The weight of layers that multiply matrices.

    Where positions are few, what is kept of the columns is ``M = Σ_r σ δ_t δ_t'`` for each
    datum and pair of positions: squares are then taken once, not for every column. With one
    position this is ``(Σ_r σ δ²)ᵀ z²``.
    """

    def __init__(
        self, shape: torch.Size, calls: Mapping[int, MatrixCall], N: int, R: int
    ) -> None:
        self.edges, self._shape, self._calls, self._N = list(calls), shape, calls, N
        (first, *_) = calls.values()
        self._groups, self._transposed = first.groups, first.transposed
        i, T = first.input_size, sum(c.num_positions(N) for c in calls.values())
        outputs = shape.numel() // i
        self._sum = _wide(first.z).new_zeros(outputs, i)
        # multiplications for an output and a datum: of each column, or of pairs and once
        by_column, by_pairs = R * (T + STREAM) * i, T * T * (STREAM * R + i)
        fits = N * outputs * T * T <= PAIRS
        self._keeps_pairs = T == 1 or (by_pairs < by_column and fits)
        self._rows = max(1, NUMBERS // max(self._sum.numel(), T * i))
        self._M: Tensor | None = None

    def add(self, deltas: Gradients, signs: Tensor | None) -> None:
        """Add some columns."""
        u = _cat([by_position(c, deltas[e], self._N) for e, c in self._calls.items()], 3)
        if self._keeps_pairs:
            M = pairs(u, signs)
            self._M = M if self._M is None else self._M.add_(M)
            return
        for n in range(0, u.shape[1], self._rows):
            rows = slice(n, n + self._rows)
            z = self._inputs(rows)
            for r, delta in enumerate(u[:, rows]):
                some = None if signs is None else signs[r, rows]
                self._sum += squares(delta.mT @ z, some).view_as(self._sum)

    def total(self) -> Tensor:
        """The sum in the shape of the weight."""
        if self._M is not None:
            self._sum += of_pairs(self._M, self._inputs(slice(None)))
        return as_weight(self._sum, self._shape, self._groups, self._transposed)

    def _inputs(self, rows: slice) -> Tensor:
        """What the weight is multiplied with in all calls, ``[n, g, T, i]``."""
        calls = self._calls.values()
        return _cat([c.inputs(self._N, rows).movedim(0, 1) for c in calls], 2)


def by_position(call: MatrixCall, U: Tensor, N: int) -> Tensor:
    """Gradients of a layer's output, ``[k, *shape]``, as ``[k, N, g, T, o]``."""
    return call.output_gradients(U, N).movedim(1, 2)


def as_weight(x: Tensor, shape: torch.Size, groups: int, transposed: bool) -> Tensor:
    """``[g·o, i]`` in the shape of a weight."""
    return x.unflatten(0, (groups, -1)).mT.reshape(shape) if transposed else x.view(shape)


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


@final
class Entries(LayerSum):
    """Scales and shifts: gradients ``Σ δ z`` and ``Σ δ`` over positions."""

    def __init__(self, i: int, calls: Mapping[int, Call], N: int) -> None:
        self.edges, self._i, self._calls, self._N = list(calls), i, calls, N
        self._sum: Tensor | float = 0.0

    def add(self, deltas: Gradients, signs: Tensor | None) -> None:
        """Add some columns."""
        g: Any = 0
        for e, call in self._calls.items():
            if call.weight == self._i:
                g = g + call.weight_gradients(deltas[e], self._N)
            if call.bias == self._i:
                g = g + call.bias_gradients(deltas[e], self._N)
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

    def __init__(self, shape: torch.Size, calls: Mapping[int, Embedding], N: int) -> None:
        self.edges, self._calls, self._shape, self._N = list(calls), calls, shape, N
        keys = torch.cat([call.keys(N) for call in calls.values()])
        self._keys, self._where = keys.unique(return_inverse=True)
        self._sum: Tensor | float = 0.0

    def add(self, deltas: Gradients, signs: Tensor | None) -> None:
        """Add some columns."""
        V, d = self._shape
        parts = [c.output_gradients(deltas[e], self._N) for e, c in self._calls.items()]
        u = torch.cat([part.reshape(len(part), -1, d) for part in parts], 1)
        G = u.new_zeros(len(u), len(self._keys), d).index_add_(1, self._where, u)
        of_key = None if signs is None else signs[:, self._keys // V, None]
        G = _wide(G).square()
        self._sum = self._sum + (G if of_key is None else G * of_key).sum(0)

    def total(self) -> Tensor:
        """The sum in the shape of the weight."""
        assert isinstance(self._sum, Tensor)
        out = self._sum.new_zeros(self._shape)
        return out.index_add_(0, self._keys % self._shape[0], self._sum)


def _cat(parts: Sequence[Tensor], axis: int) -> Tensor:
    """Without a copy where there is one part."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts), axis)


def _wide(t: Tensor) -> Tensor:
    """In single precision at least."""
    return t.to(torch.promote_types(t.dtype, torch.float32))
