"""A weight that is both an embedding and a linear layer, such as a tied head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from curvop.kronecker.blocks import Block, EigenBlock, KroneckerBlock
from curvop.kronecker.calls import LayerCall, MatrixCall, TableCall
from curvop.kronecker.sums import LayerSums, MatrixSums, TableSums


@final
class TiedSums(LayerSums[LayerCall]):
    """The Kronecker product that is nearest to the sum of the two.

    Args:
        matrix: Sums for the linear layer.
        table: Sums for the embedding.
    """

    def __init__(self, matrix: MatrixSums, table: TableSums):
        self._matrix, self._table = matrix, table
        matrix.complete()
        self.tensors = {
            f"{kind}.{name}": t
            for kind, sums in (("matrix", matrix.tensors), ("table", table.tensors))
            for name, t in sums.items()
        }

    def receive(self, call: LayerCall, g: Tensor) -> None:
        """To the layer that was called."""
        if isinstance(call, MatrixCall):
            self._matrix.receive(call, g)
        elif isinstance(call, TableCall):
            self._table.receive(call, g)

    def end_column(self) -> None:
        """Of both."""
        self._matrix.end_column()
        self._table.end_column()

    def start(self, calls: Sequence[LayerCall]) -> None:
        """Of both."""
        self._matrix.start([call for call in calls if isinstance(call, MatrixCall)])
        self._table.start([call for call in calls if isinstance(call, TableCall)])

    def blocks(self, Z: Tensor) -> list[Block]:
        """One."""
        both = [*self._matrix.blocks(Z), *self._table.blocks(Z)]
        return [nearest([b for b in both if isinstance(b, KroneckerBlock)])]


def nearest(terms: Sequence[KroneckerBlock]) -> KroneckerBlock:
    """The ``L ⊗ R`` that is nearest to ``Σ Lᵢ ⊗ Rᵢ`` in the Frobenius norm.

    ``L = Σ αᵢ Lᵢ`` and ``R = Σ βᵢ Rᵢ`` from the leading singular vectors of
    ``Σ vec(Lᵢ) vec(Rᵢ)ᵀ`` (Van Loan, Pitsianis, "Approximation with Kronecker products",
    1993). Of positive semi-definite terms it is positive semi-definite.
    """
    L = torch.stack([_dense(term.left) for term in terms])
    R = torch.stack([_dense(term.right) for term in terms])
    inner_L, inner_R = (F.flatten(1).double() @ F.flatten(1).double().T for F in (L, R))
    # (Σ vec(Lᵢ) vec(Rᵢ)ᵀ) (…)ᵀ vec(L) = σ² vec(L)
    values, vectors = torch.linalg.eig(inner_R @ inner_L)
    alpha = vectors[:, values.real.argmax()].real.abs()
    beta = inner_L @ alpha
    norm = (alpha @ beta).sqrt().clamp_min(torch.finfo(torch.float64).tiny)
    left, right = (
        torch.einsum("i,igab->gab", (c / norm).to(F), F) for c, F in ((alpha, L), (beta, R))
    )
    return KroneckerBlock(terms[0].members, left, right)


def _dense(factor: Tensor | None) -> Tensor:
    assert factor is not None
    return torch.diag_embed(factor) if factor.ndim == 2 else factor


@final
class TiedValues(LayerSums[LayerCall]):
    """The eigenvalues: gradients of the two add up before they are squared.

    Takes the gradients of all data of a batch at a time.
    """

    def __init__(self, block: EigenBlock):
        self._block = block
        self.tensors = {"values": torch.zeros_like(block.values)}
        self._pending: Tensor | None = None

    def receive(self, call: LayerCall, g: Tensor) -> None:
        """The gradient of each datum, ``[N, 1, V, D]``."""
        values = self.tensors["values"]
        _, V, D = values.shape
        if self._pending is None:
            self._pending = values.new_zeros(call.num_data * V, D)
        if isinstance(call, TableCall):
            keys, rows = call.slopes(g)
            self._pending.index_add_(0, keys, rows.to(values.dtype))
        elif isinstance(call, MatrixCall):
            slopes = call.slopes(g)[0].permute(1, 0, 2)  # [N, V, T]
            for some, z in call.inputs():
                part = self._pending.view(-1, V, D)[some]
                part += (slopes[some] @ z[0].permute(1, 2, 0)).to(values.dtype)

    def end_column(self) -> None:
        """Their squares."""
        if self._pending is None:
            return
        gradients = self._pending.view(-1, 1, *self._block.values.shape[1:])
        rotated = self._block.rotate(gradients, back=False)
        self.tensors["values"] += rotated.square_().sum(0)
        self._pending = None

    def blocks(self, Z: Tensor) -> list[Block]:
        """One."""
        return [replace(self._block, values=self.tensors["values"] / Z)]
