"""EKFAC: the eigenvalues that fit the exact matrix best, in the eigenbasis of KFAC.

``λ_jk = Σ_n ((Qᵀ G_n U)_jk)² / Z`` with the gradients ``G_n = Σ_t g zᵀ`` of all columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from curvop.kronecker.blocks import Block, EigenBlock
from curvop.kronecker.calls import MatrixCall, TableCall
from curvop.kronecker.sums import LayerSums

# Numbers that the gradients of single data may take at once.
GRADIENTS = 2**22


@final
class MatrixValues(LayerSums[MatrixCall]):
    """Eigenvalues of a linear layer or convolution.

    Args:
        weight: Eigenbasis of the weight, perhaps together with the bias.
        bias: Eigenbasis of a bias apart.
    """

    def __init__(self, weight: EigenBlock | None, bias: EigenBlock | None):
        self._weight, self._bias = weight, bias
        self._blocks = [b for b in (weight, bias) if b is not None]
        self._joint = weight is not None and len(weight.members.positions) == 2
        self.tensors = {
            str(i): torch.zeros_like(b.values) for i, b in enumerate(self._blocks)
        }
        self._single = False
        self._inputs: dict[int, Tensor] = {}
        self._pending: Tensor | None = None
        self._pending_bias: Tensor | None = None

    def _values(self, block: EigenBlock) -> Tensor:
        return self.tensors[str(next(i for i, b in enumerate(self._blocks) if b is block))]

    def start(self, calls: Sequence[MatrixCall]) -> None:
        """Whether gradients are those of one call."""
        self._single = len(calls) == 1
        self._inputs = {}

    def receive(self, call: MatrixCall, g: Tensor) -> None:
        """Gradients of weight and bias for each datum."""
        g = call.slopes(g)  # [G, a, N, T]
        if self._bias is not None:
            total = g.sum(-1)
            old = self._pending_bias
            self._pending_bias = total if old is None else old + total
        if self._weight is None:
            return
        if self._single and g.shape[-1] == 1:
            self._add_products(call, g[..., 0])
        elif self._single:
            for some, z in call.inputs():
                step = max(1, GRADIENTS // (z.shape[1] * g.shape[0] * g.shape[1]))
                for n in range(some.start, some.stop, step):
                    part = slice(n, min(n + step, some.stop))
                    mine = z[:, :, part.start - some.start : part.stop - some.start]
                    self._add(self._gradients(g[:, :, part], mine))
        else:
            parts = [self._gradients(g[:, :, some], z) for some, z in call.inputs()]
            total = torch.cat(parts)
            self._pending = total if self._pending is None else self._pending + total

    def _gradients(self, g: Tensor, z: Tensor) -> Tensor:
        """``Σ_t g zᵀ``, ``[n, G, a, d]``."""
        return g.permute(2, 0, 1, 3) @ self._extended(z).permute(2, 0, 3, 1)

    def _extended(self, z: Tensor) -> Tensor:
        """``[G, d, ...]`` with a one below where the bias belongs to the weight."""
        return torch.cat([z, z.new_ones(len(z), 1, *z.shape[2:])], 1) if self._joint else z

    def _add_products(self, call: MatrixCall, g: Tensor) -> None:
        """Without positions to sum over, squares of ``Qᵀ g`` and ``Uᵀ z`` multiply."""
        block = self._weight
        assert block is not None
        assert block.left is not None
        assert block.right is not None
        if call.index not in self._inputs:  # the same for all columns
            z = torch.cat([z[..., 0] for _, z in call.inputs()], 2)
            z = self._extended(z).to(block.values.dtype)
            self._inputs[call.index] = (block.right.mT @ z).square_()
        g = (block.left.mT @ g.to(block.values.dtype)).square_()
        self._values(block).baddbmm_(g, self._inputs[call.index].mT)

    def _add(self, gradients: Tensor) -> None:
        block = self._weight
        assert block is not None
        rotated = block.rotate(gradients.to(block.values.dtype), back=False)
        self._values(block).add_(rotated.square_().sum(0))

    def end_column(self) -> None:
        """What has been summed over calls, squared."""
        if self._pending is not None:
            self._add(self._pending)
            self._pending = None
        if self._pending_bias is not None and self._bias is not None:
            b = self._pending_bias.movedim(2, 0)[..., None]  # [N, G, a, 1]
            rotated = self._bias.rotate(b.to(self._bias.values.dtype), back=False)
            self._values(self._bias).add_(rotated.square_().sum(0))
            self._pending_bias = None

    def blocks(self, Z: Tensor) -> list[Block]:
        """The same bases with these eigenvalues."""
        sums = self.tensors.values()
        return [replace(b, values=s / Z) for b, s in zip(self._blocks, sums, strict=True)]


@final
class TableValues(LayerSums[TableCall]):
    """Eigenvalues of an embedding: a datum touches only the rows of its tokens."""

    def __init__(self, block: EigenBlock):
        self._block = block
        self.tensors = {"values": torch.zeros_like(block.values)}
        self._pending: list[tuple[Tensor, Tensor]] = []

    def receive(self, call: TableCall, g: Tensor) -> None:
        """Keys of data and tokens, with their slopes."""
        self._pending.append(call.slopes(g))

    def end_column(self) -> None:
        """Slopes of the same token in the same datum are one gradient."""
        if not self._pending:
            return
        keys = torch.cat([k for k, _ in self._pending])
        g = torch.cat([g for _, g in self._pending])
        self._pending = []
        values, U = self.tensors["values"][0], self._block.right
        assert U is not None
        touched, which = keys.unique(return_inverse=True)
        rows = values.new_zeros(len(touched), values.shape[1])
        rows.index_add_(0, which, g.to(values.dtype) @ U[0])
        values.index_add_(0, touched % len(values), rows.square_())

    def blocks(self, Z: Tensor) -> list[Block]:
        """One."""
        return [replace(self._block, values=self.tensors["values"] / Z)]
