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
from curvop.kronecker.layer_sums import LayerSums
from curvop.layers import Embedding, MatrixCall

# Numbers that the gradients of single data may take at once.
GRADIENTS = 2**22


def _sides(call: MatrixCall, outputs: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """What belongs to the rows of the weight, and to its columns; or back."""
    return (inputs, outputs) if call.transposed else (outputs, inputs)


@final
class MatrixValues(LayerSums[MatrixCall | Embedding]):
    """Eigenvalues of a layer that multiplies a matrix, which may be a table as well.

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
        self._rotated_inputs: Tensor | None = None
        self._pending: Tensor | None = None
        self._pending_bias: Tensor | None = None

    def _values(self, block: EigenBlock) -> Tensor:
        return self.tensors[str(next(i for i, b in enumerate(self._blocks) if b is block))]

    def start(self, calls: Sequence[MatrixCall | Embedding], N: int) -> None:
        """Whether gradients are those of one call."""
        self._single = len(calls) == 1
        self._rotated_inputs = None

    def receive(self, call: MatrixCall | Embedding, g: Tensor, N: int) -> None:
        """Gradients of weight and bias for each datum."""
        if self._bias is not None:
            total = call.gradients_of_bias(g[None], N)[0].sum(2)
            old = self._pending_bias
            self._pending_bias = total if old is None else old + total
        if self._weight is None:
            return
        if isinstance(call, Embedding):  # of a weight that is a linear layer's as well
            self._wait(call.weight_gradients(g[None], N)[0][:, None])
            return
        g = call.output_gradients(g[None], N)[0]  # [G, N, T, m]
        if self._single and g.shape[2] == 1:
            self._add_products(call, g[:, :, 0], N)
        elif self._single:
            for some, z in call.input_chunks(N):
                step = max(1, GRADIENTS // (z.shape[3] * g.shape[0] * g.shape[3]))
                for n in range(some.start, some.stop, step):
                    part = slice(n, min(n + step, some.stop))
                    mine = z[:, part.start - some.start : part.stop - some.start]
                    self._add(self._gradients(call, g[:, part], mine))
        else:
            chunks = call.input_chunks(N)
            self._wait(torch.cat([self._gradients(call, g[:, n], z) for n, z in chunks]))

    def _wait(self, gradients: Tensor) -> None:
        """For those of the other calls: they add up before they are squared."""
        old = self._pending
        self._pending = gradients if old is None else old + gradients

    def _gradients(self, call: MatrixCall, g: Tensor, z: Tensor) -> Tensor:
        """``Σ_t g zᵀ``, ``[n, G, a, d]``."""
        left, right = _sides(call, g, self._extended(z))
        return left.movedim(1, 0).mT @ right.movedim(1, 0)

    def _extended(self, z: Tensor) -> Tensor:
        """``[..., d]`` with a one at the end where the bias belongs to the weight."""
        return torch.cat([z, z.new_ones(*z.shape[:-1], 1)], -1) if self._joint else z

    def _add_products(self, call: MatrixCall, g: Tensor, N: int) -> None:
        """Without positions to sum over, squares of ``Qᵀ g`` and ``Uᵀ z`` multiply."""
        block = self._weight
        assert block is not None
        assert block.left is not None
        assert block.right is not None
        dtype = block.values.dtype
        of_outputs, of_inputs = _sides(call, block.left, block.right)
        if self._rotated_inputs is None:  # the same for all columns
            z = torch.cat([z[:, :, 0] for _, z in call.input_chunks(N)], 1)
            rotated = self._extended(z).to(dtype) @ of_inputs
            self._rotated_inputs = rotated.square_()
        g = (g.to(dtype) @ of_outputs).square_()
        left, right = _sides(call, g, self._rotated_inputs)
        self._values(block).baddbmm_(left.mT, right)

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
            b = self._pending_bias.movedim(1, 0)[..., None]  # [N, G, a, 1]
            rotated = self._bias.rotate(b.to(self._bias.values.dtype), back=False)
            self._values(self._bias).add_(rotated.square_().sum(0))
            self._pending_bias = None

    def blocks(self, Z: Tensor) -> list[Block]:
        """The same bases with these eigenvalues."""
        sums = self.tensors.values()
        return [replace(b, values=s / Z) for b, s in zip(self._blocks, sums, strict=True)]


@final
class TableValues(LayerSums[Embedding]):
    """Eigenvalues of an embedding: a datum touches only the rows of its tokens."""

    def __init__(self, block: EigenBlock):
        self._block = block
        self.tensors = {"values": torch.zeros_like(block.values)}
        self._pending: list[tuple[Tensor, Tensor]] = []

    def receive(self, call: Embedding, g: Tensor, N: int) -> None:
        """Keys of data and tokens, with their gradients."""
        self._pending.append(
            (call.keys(N), call.output_gradients(g[None], N).flatten(0, 3))
        )

    def end_column(self) -> None:
        """Gradients of the same token in the same datum are summed."""
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
