"""Double backward over graphs that are kept from product to product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from curvop.autograd import gradient, pull, pullback
from curvop.derivatives import (
    Aux,
    ChunkSize,
    Cotangents,
    Differentiable,
    Middle,
    Outputs,
    apply_each,
    only_tensor,
)
from curvop.linearized.budget import BatchProduct, Budget, Kept, held, noted
from curvop.operators import Blocks
from curvop.risk import Batch, Parameters, in_graph

if TYPE_CHECKING:
    from curvop.curvature import CurvatureLinearOperator


class KeptGraph:
    """The derivatives of one batch, whose graphs are built at the first product.

    A product asks for the same derivatives in the same order each time; the graphs are
    kept in this order. For any op and any callable, like double backward itself.
    """

    name = "kept graph"

    def __init__(self) -> None:
        self._graphs: list[Any] = []
        self._turn = 0

    def product(self, multiply: Callable[[], Blocks]) -> Blocks:
        """Run a product that differentiates with this object."""
        self._turn = 0
        return multiply()

    def _once(self, build: Callable[[], Any]) -> Any:
        if self._turn == len(self._graphs):
            self._graphs.append(build())
        self._turn += 1
        return self._graphs[self._turn - 1]

    def hessian(
        self, f: Differentiable, at: Parameters, V: Blocks, chunk: ChunkSize
    ) -> tuple[Blocks, Aux]:
        """Second backward pass through the gradient."""

        def build() -> tuple[list[Tensor], Outputs, Aux]:
            outputs, aux = f(params)
            return gradient(only_tensor(in_graph(outputs, at)), params), params, aux

        with torch.enable_grad(), at.leaves() as params:
            g, leaves, aux = self._once(build)
            return apply_each(lambda v: pull(g, leaves, v), V), aux

    def sandwich(
        self,
        f: Differentiable,
        at: Parameters,
        V: Blocks,
        middle: Middle,
        chunk: ChunkSize,
    ) -> tuple[Blocks, Aux]:
        """``J v`` by transposing the graph of ``u ↦ Jᵀ u``, ``Jᵀ`` by reverse mode."""
        with torch.enable_grad(), at.leaves() as params:
            outputs, u, Jt_u, leaves, on_the_way = self._once(
                lambda: _both_ways(f, at, params)
            )
            U = apply_each(lambda v: pull(Jt_u, u, v), V)
            W, aux = middle(tuple(o.detach() for o in outputs), U)
            product = apply_each(lambda w: pull(outputs, leaves, w), W)
            return product, (*on_the_way, *aux)

    def jvp(self, f: Differentiable, at: Parameters, V: Blocks, chunk: ChunkSize) -> Blocks:
        """``J v`` by transposing the graph of ``u ↦ Jᵀ u``."""
        with torch.enable_grad(), at.leaves() as params:
            _, u, Jt_u, *_ = self._once(lambda: _both_ways(f, at, params))
            return apply_each(lambda v: pull(Jt_u, u, v), V)

    def vjp(
        self, f: Differentiable, at: Parameters, U: Cotangents, chunk: ChunkSize
    ) -> Blocks:
        """``Jᵀ u`` by reverse mode on the same graph."""
        with torch.enable_grad(), at.leaves() as params:
            outputs, _, _, leaves, _ = self._once(lambda: _both_ways(f, at, params))
            return apply_each(lambda u: pull(outputs, leaves, u), U(outputs))


def _both_ways(
    f: Differentiable, at: Parameters, params: Outputs
) -> tuple[Outputs, Outputs, list[Tensor], Outputs, Aux]:
    """Outputs in their graph, and ``u ↦ Jᵀ u`` in one of its own."""
    outputs, on_the_way = f(params)
    in_graph(outputs, at)
    u = tuple(torch.zeros_like(o).requires_grad_() for o in outputs)
    Jt_u = pullback(outputs, params, u, create_graph=True, keep=True)
    return outputs, u, Jt_u, params, on_the_way


def graphs(
    op: CurvatureLinearOperator, batches: Sequence[Batch], v: Blocks, budget: Budget
) -> Kept:
    """Double backward with autograd's graphs kept, as far as the budget allows."""
    pieces: list[BatchProduct] = []
    total = 0
    besides = held(op.risk, batches)
    for X, y in batches:
        saved: dict[int, int] = {}
        piece = _graph_piece(op, X, y, KeptGraph())
        with noted(saved, besides=besides):
            piece(v)
        if not budget.allows(total + sum(saved.values())):
            piece = _scratch_piece(op, X, y)
        else:
            total += sum(saved.values())
        pieces.append(piece)
    return Kept(pieces, total)


def _graph_piece(
    op: CurvatureLinearOperator, X: Any, y: Any, kept: KeptGraph
) -> BatchProduct:
    def piece(V: Blocks) -> Blocks:
        with op.risk.context():
            return kept.product(lambda: op.product_by(kept, X, y, V))

    return piece


def _scratch_piece(op: CurvatureLinearOperator, X: Any, y: Any) -> BatchProduct:
    def piece(V: Blocks) -> Blocks:
        with op.risk.context():
            return op.batch_product(X, y, V)[1][0]

    return piece


def scratch(
    op: CurvatureLinearOperator, batches: Sequence[Batch], v: Blocks, budget: Budget
) -> Kept:
    """The operator's own products, with nothing kept."""
    return Kept([_scratch_piece(op, X, y) for X, y in batches], 0)
