"""Double backward over graphs that are kept from product to product."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor

from curvop.autograd import column_vjp, gradient, graph_vjp
from curvop.derivatives import (
    Aux,
    ChunkSize,
    Differentiable,
    Linearization,
    OnOneGraph,
    Outputs,
    apply_each,
    only_tensor,
)
from curvop.linearized.budget import (
    BatchProduct,
    Budget,
    Kept,
    saved_by_autograd,
    storages_in_use,
)
from curvop.operators import Blocks
from curvop.risk import Batch, Parameters, Predictions, Risk, in_graph

if TYPE_CHECKING:
    from curvop.curvature import CurvatureLinearOperator


@final
class KeptGraph(OnOneGraph):
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
            return apply_each(lambda v: column_vjp(g, leaves, v), V), aux

    @contextmanager
    def linear(self, f: Differentiable, at: Parameters) -> Iterator[Linearization]:
        """``J v`` by transposing the graph of ``u ↦ Jᵀ u``, ``Jᵀ`` by reverse mode."""
        with torch.enable_grad(), at.leaves() as params:
            outputs, u, Jt_u, leaves, aux = self._once(lambda: _both_ways(f, at, params))
            yield Linearization(
                outputs,
                aux,
                jvp=lambda V: apply_each(lambda v: column_vjp(Jt_u, u, v), V),
                vjp=lambda U: apply_each(lambda u: column_vjp(outputs, leaves, u), U),
            )


def _both_ways(
    f: Differentiable, at: Parameters, params: Outputs
) -> tuple[Outputs, Outputs, list[Tensor], Outputs, Aux]:
    """Outputs in their graph, and ``u ↦ Jᵀ u`` in one of its own."""
    outputs, on_the_way = f(params)
    in_graph(outputs, at)
    u = tuple(torch.zeros_like(o).requires_grad_() for o in outputs)
    Jt_u = graph_vjp(outputs, params, u, create_graph=True, keep=True)
    return outputs, u, Jt_u, params, on_the_way


def kept_graphs(
    risk: Risk | Predictions,
    batches: Sequence[Batch],
    budget: Budget,
    run: Callable[[KeptGraph, Any, Any], object],
) -> Kept[KeptGraph | None]:
    """The graph of each batch, built by a product; ``None`` where it may not be kept."""
    found: list[KeptGraph | None] = []
    besides, total = storages_in_use(risk, batches), 0
    for X, y in batches:
        saved: dict[int, int] = {}
        graph = KeptGraph()
        with saved_by_autograd(saved, besides=besides):
            run(graph, X, y)
        fits = budget.allows(total + sum(saved.values()))
        total += sum(saved.values()) if fits else 0
        found.append(graph if fits else None)
    return Kept(found, total)


def graphs(
    op: CurvatureLinearOperator, batches: Sequence[Batch], v: Blocks, budget: Budget
) -> Kept[BatchProduct]:
    """Double backward with autograd's graphs kept, as far as the budget allows."""

    def multiply(graph: KeptGraph, X: Any, y: Any, V: Blocks) -> Blocks:
        with op.risk.context():
            return graph.product(lambda: op.product_by(graph, X, y, V))

    kept = kept_graphs(
        op.risk, batches, budget, lambda graph, X, y: multiply(graph, X, y, v)
    )
    pairs = zip(kept.batches, batches, strict=True)
    products = [
        _from_scratch(op, X, y) if graph is None else partial(multiply, graph, X, y)
        for graph, (X, y) in pairs
    ]
    return Kept(products, kept.nbytes)


def scratch(
    op: CurvatureLinearOperator, batches: Sequence[Batch], v: Blocks, budget: Budget
) -> Kept[BatchProduct]:
    """The operator's own products, with nothing kept."""
    return Kept([_from_scratch(op, X, y) for X, y in batches], 0)


def _from_scratch(op: CurvatureLinearOperator, X: Any, y: Any) -> BatchProduct:
    def product(V: Blocks) -> Blocks:
        with op.risk.context():
            return op.batch_product(X, y, V)[1][0]

    return product
