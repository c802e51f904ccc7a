"""What is summed over the data for the parameters of a layer, and the block from it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Generic, TypeVar, cast, final

import torch
from torch import Size, Tensor

from curvop.kronecker.bands import Bands, repeats
from curvop.kronecker.blocks import Block, KroneckerBlock, Members
from curvop.kronecker.calls import LayerCall, MatrixCall, ScaleCall, TableCall
from curvop.kronecker.gram import add_gram, mirror

C = TypeVar("C", bound=LayerCall)

# Scales and shifts with more features get the diagonal of their block.
SMALL = 4096


class LayerSums(ABC, Generic[C]):
    """Sums for parameters that are always used together.

    For each batch: :meth:`start`; for each column of the loss's factor :meth:`receive`, as
    often as there are calls, and :meth:`end_column`.

    Attributes:
        tensors: The sums, which add up over batches and ranks.
    """

    tensors: dict[str, Tensor]

    def start(self, calls: Sequence[C]) -> None:
        """Before the backward passes of a batch."""

    @abstractmethod
    def receive(self, call: C, g: Tensor) -> None:
        """The gradient of a column with respect to the output of a call."""

    def end_column(self) -> None:
        """All calls have received a column."""

    def complete(self) -> None:
        """All sums are there, also those to which nothing was added."""

    @abstractmethod
    def blocks(self, Z: Tensor) -> list[Block]:
        """The blocks, from the sums over all data and the divisor of the loss.

        The sums become the factors, in place.
        """


def _sums(sizes: dict[str, Sequence[int]], like: Tensor) -> dict[str, Tensor]:
    return {name: like.new_zeros(size) for name, size in sizes.items()}


@final
class MatrixSums(LayerSums[MatrixCall]):
    r"""Kronecker factors of a linear layer or convolution.

    expand: ``A = Σ z zᵀ / M`` over the ``M`` positions of all data and calls, and
    ``B = Σ g gᵀ / Z``. reduce: the same with the mean of ``z`` and the sum of ``g`` over
    the positions of a datum, and ``M = N``.

    Args:
        weight: Position of the weight, if it is one of the parameters.
        bias: Position of the bias.
        call: The first call.
        reduce: Whether positions are reduced.
        joint: Whether the bias is a column of the weight.
        forward_only: Whether ``B`` is the identity.
        like: A tensor of the dtype and device to sum in.
    """

    def __init__(
        self,
        weight: int | None,
        bias: int | None,
        call: MatrixCall,
        *,
        reduce: bool,
        joint: bool,
        forward_only: bool,
        like: Tensor,
    ):
        G, shape = call.groups, call.shape
        a, d = shape[0] // G, shape[1:].numel()
        self._members = (weight, bias)
        self._forward_only = forward_only
        self._shape, self._groups, self._rows = shape, G, a
        self._reduce = reduce
        self._joint = joint and None not in self._members
        self._columns = 0 if weight is None else d + self._joint
        self.tensors = _sums({"count": ()}, like)
        self._bands: Bands | None = None
        self._pending: Tensor | None = None

    def _sum(self, name: str, n: int) -> Tensor:
        """Made when the first terms arrive: slopes do when activations have gone."""
        if name not in self.tensors:
            G = self._groups
            self.tensors[name] = self.tensors["count"].new_zeros(G, n, n)
        return self.tensors[name]

    def _left(self) -> Tensor:
        return self._sum("left", self._rows)

    def _right(self) -> Tensor:
        return self._sum("right", self._columns)

    def complete(self) -> None:
        """Where nothing has arrived, the sum is zero."""
        self._left()
        right = self._right()
        if self._bands is not None:
            d = self._columns - self._joint
            right[:, :d, :d] += self._bands.unfolded()
            self._bands = None

    def receive(self, call: MatrixCall, g: Tensor) -> None:
        """``Σ g gᵀ``."""
        g = call.slopes(g)
        if not self._reduce:
            add_gram(self._left(), g.flatten(2))
            return
        total = g.sum(-1)
        self._pending = total if self._pending is None else self._pending + total

    def end_column(self) -> None:
        """The outer product of what was reduced."""
        if self._pending is not None:
            add_gram(self._left(), self._pending)
            self._pending = None

    def start(self, calls: Sequence[MatrixCall]) -> None:
        """``Σ z zᵀ``."""
        if self._members[0] is None:
            return
        for call in calls:
            call.check()
        if self._reduce:
            sums, lengths = zip(*(call.mean_inputs() for call in calls), strict=True)
            self._add_inputs(sum(sums) / sum(lengths))
            return
        for call in calls:
            if repeats(call):
                self._add_bands(call)
                continue
            for _, z in call.inputs():
                self._add_inputs(z.flatten(2))

    def _add_bands(self, call: MatrixCall) -> None:
        if self._bands is None:
            self._bands = Bands(call, like=self.tensors["count"])
        self._bands.add(call)
        positions = call.num_positions()
        if self._joint:
            total = call.mean_inputs()[0].sum(-1)
            right = self._right()
            right[:, :-1, -1] += total
            right[:, -1, :-1] += total
            right[:, -1, -1] += positions
        self.tensors["count"] += positions

    def _add_inputs(self, z: Tensor) -> None:
        """``z``, ``[G, d, m]``, with a one below where the bias belongs to the weight."""
        if self._joint:
            z = torch.cat([z, z.new_ones(len(z), 1, z.shape[-1])], 1)
        add_gram(self._right(), z)
        self.tensors["count"] += z.shape[-1]

    def blocks(self, Z: Tensor) -> list[Block]:
        """One for weight and bias, or one for each."""
        weight, bias = self._members
        G, a = self._groups, self._rows
        left = mirror(self._left()).div_(Z)
        if self._forward_only:
            left = left.new_ones(G, a)
        right = mirror(self.tensors["right"]).div_(self.tensors["count"].clamp_min(1))
        o = Size((G * a,))
        if self._joint:
            both = Members((cast(int, weight), cast(int, bias)), (self._shape, o), G, a)
            return [KroneckerBlock(both, left, right)]
        found: list[Block] = []
        if weight is not None:
            members = Members((weight,), (self._shape,), G, a)
            found.append(KroneckerBlock(members, left, right))
        if bias is not None:
            found.append(KroneckerBlock(Members((bias,), (o,), G, a), left, None))
        return found


@final
class TableSums(LayerSums[TableCall]):
    """Kronecker factors of an embedding, whose inputs are unit vectors.

    ``A`` is diagonal: the share of each token among the positions of all data. Positions
    of the padding token do not count.
    """

    def __init__(self, call: TableCall, *, forward_only: bool, like: Tensor):
        self._forward_only = forward_only
        V, D = call.shape
        self._member = Members((cast(int, call.weight),), (call.shape,), 1, V)
        self.tensors = _sums({"counts": (V,), "right": (1, D, D)}, like)

    def receive(self, call: TableCall, g: Tensor) -> None:
        """``Σ g gᵀ``."""
        add_gram(self.tensors["right"], call.slopes(g)[1].T[None])

    def start(self, calls: Sequence[TableCall]) -> None:
        """How often each token comes."""
        for call in calls:
            self.tensors["counts"] += call.counts(self.tensors["counts"].dtype)

    def blocks(self, Z: Tensor) -> list[Block]:
        """One."""
        counts = self.tensors["counts"]
        left = (counts / counts.sum().clamp_min(1))[None]
        right = mirror(self.tensors["right"]).div_(Z)
        if self._forward_only:
            right = right.new_ones(right.shape[:2])
        return [KroneckerBlock(self._member, left, right)]


@final
class ScaleSums(LayerSums[ScaleCall]):
    """The exact blocks of scale and shift of a normalisation.

    ``Σ_n j_n j_nᵀ / Z`` with ``j = Σ_t g ∘ x̂`` for the scale and ``Σ_t g`` for the shift;
    of many features the diagonal.
    """

    def __init__(
        self,
        weight: int | None,
        bias: int | None,
        shape: Size,
        *,
        forward_only: bool,
        like: Tensor,
    ):
        self._has = (weight is not None, bias is not None)
        self._of = [i for i in (weight, bias) if i is not None]
        self._shape, self._forward_only = shape, forward_only
        n = shape.numel()
        self._full = n <= SMALL and not forward_only
        size = (1, n, n) if self._full else (1, n)
        self.tensors = _sums(dict.fromkeys(map(str, self._of), size), like)
        self._pending: list[Tensor] = []

    def receive(self, call: ScaleCall, g: Tensor) -> None:
        """``Σ_t g ∘ x̂`` and ``Σ_t g``, for each datum."""
        g, parts = call.slopes(g), []
        if self._has[0]:
            parts.append(torch.einsum("ntd,ntd->nd", g, call.x))
        if self._has[1]:
            parts.append(g.sum(1))
        if self._pending:
            parts = [p + q for p, q in zip(self._pending, parts, strict=True)]
        self._pending = parts

    def end_column(self) -> None:
        """Their outer products."""
        for total, j in zip(self.tensors.values(), self._pending, strict=False):
            if self._full:
                add_gram(total, j.T[None])
            else:
                total += j.square().sum(0)
        self._pending = []

    def blocks(self, Z: Tensor) -> list[Block]:
        """One for each."""
        out: list[Block] = []
        for i, total in zip(self._of, self.tensors.values(), strict=True):
            members = Members((i,), (self._shape,), 1, total.shape[1])
            left = (mirror(total) if self._full else total).div_(Z)
            if self._forward_only:
                left = torch.ones_like(total)
            out.append(KroneckerBlock(members, left, None))
        return out
