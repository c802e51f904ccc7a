"""Double backward over graphs that are kept from product to product."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from curvop.curvature.columns import ChunkSize
from curvop.curvature.differentiation import (
    Aux,
    Cotangents,
    Differentiable,
    Middle,
    Outputs,
    apply_each,
    only_tensor,
)
from curvop.curvature.graph import gradient, in_graph, pull, pullback
from curvop.curvature.keeping import Effort, Kept, Piece, held, noted
from curvop.curvature.merging import Batch
from curvop.curvature.parameters import Parameters
from curvop.curvature.surroundings import surroundings
from curvop.operators.layout import Blocks

if TYPE_CHECKING:
    from curvop.curvature.base import CurvatureLinearOperator


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
    op: CurvatureLinearOperator, batches: Sequence[Batch], v: Blocks, effort: Effort
) -> Kept:
    """Double backward with autograd's graphs kept, as far as the budget allows."""
    pieces: list[Piece] = []
    total = 0
    besides = held(op, batches)
    for X, y in batches:
        saved: dict[int, int] = {}
        piece = _graph_piece(op, X, y, KeptGraph())
        with noted(saved, besides=besides):
            piece(v)
        if not effort.allows(total + sum(saved.values())):
            piece = _scratch_piece(op, X, y)
        else:
            total += sum(saved.values())
        pieces.append(piece)
    return Kept(pieces, total)


def _graph_piece(op: CurvatureLinearOperator, X: Any, y: Any, kept: KeptGraph) -> Piece:
    bound = op._with(_ways=(kept,))

    def piece(V: Blocks) -> Blocks:
        with surroundings(op._data):
            return kept.product(lambda: bound._matmat_blocks(X, y, V)[0])

    return piece


def _scratch_piece(op: CurvatureLinearOperator, X: Any, y: Any) -> Piece:
    def piece(V: Blocks) -> Blocks:
        with surroundings(op._data):
            return op._matmat_one(X, y, V)[1][0]

    return piece


def scratch(
    op: CurvatureLinearOperator, batches: Sequence[Batch], v: Blocks, effort: Effort
) -> Kept:
    """The operator's own products, with nothing kept."""
    return Kept([_scratch_piece(op, X, y) for X, y in batches], 0)
