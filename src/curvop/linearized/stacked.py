"""Jacobians linearised: the rows of each batch, one batch after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.func import jvp, vjp

from curvop.curvature import Form, JacobianLinearOperator
from curvop.linearized.budget import BatchProduct, Budget
from curvop.linearized.choice import first_right, verify, verify_columns
from curvop.linearized.graphs import KeptGraph, kept_graphs
from curvop.linearized.recorded import replays, vector
from curvop.operators import Blocks, probe, tolerance
from curvop.risk import TURN, Batch


@dataclass(frozen=True)
class JacobianOfBatch:
    """The Jacobian of one batch.

    Attributes:
        jvp: ``J V``, ``[K, *n_i] -> [K, R]``.
        vjp: ``Jᵀ U``, ``[K, R] -> [K, *n_i]``.
        rows: Number ``R`` of rows.
    """

    jvp: Callable[[Blocks], Tensor]
    vjp: Callable[[Tensor], Blocks]
    rows: int


@final
@dataclass(frozen=True)
class Stacked:
    """The rows of all batches.

    Attributes:
        batches: Those of each.
        nbytes: Bytes that are kept beyond parameters and data.
        compile_seconds: Seconds that a compiler took.
        travels: No product costs a collective.
    """

    batches: tuple[JacobianOfBatch, ...]
    nbytes: int = 0
    compile_seconds: float = 0.0
    travels: bool = False

    def multiply(self, V: Blocks) -> Blocks:
        """``J V``, ``[K, N·C]``."""
        return [torch.cat([batch.jvp(V) for batch in self.batches], 1)]

    def multiply_transposed(self, U: Blocks) -> Blocks:
        """``Jᵀ U``."""
        parts = U[0].flatten(1).split([batch.rows for batch in self.batches], 1)
        first, *others = zip(self.batches, parts, strict=True)
        sums = [b.to(U[0].dtype, copy=True) for b in first[0].vjp(first[1])]
        for batch, u in others:
            for total, part in zip(sums, batch.vjp(u), strict=True):
                total += part
        return sums


def first_form(J: JacobianLinearOperator, budget: Budget) -> tuple[Form, Stacked]:
    """The cheapest form that gives the right products."""
    J = J.with_kernels_of_its_way()
    with J.risk.context():
        batches = [(X, None) for X, _ in J.risk.data.batches("linearize")]
        scratch = _scratch(J, batches)
        v = probe([p.detach()[None] for p in J.risk.parameters.tensors])
        u = probe([torch.empty(1, J.shape[0], dtype=J.dtype, device=J.device)])
        right = scratch.multiply(v), scratch.multiply_transposed(u)
        if not any(bool(b.any()) for b in right[1]):
            J.risk.check_dependence()

        def check(products: Stacked) -> None:
            rounding = max(tolerance(J.dtype), 10 * (J.relative_error or 0.0))
            for multiply, w, Aw in (
                (products.multiply, v, right[0]),
                (products.multiply_transposed, u, right[1]),
            ):
                one = multiply(w)
                verify(one, Aw, rounding)
                verify_columns(one, multiply, w, rounding)

        forms: dict[Form, Callable[[], Stacked]] = {
            "recorded": lambda: _recorded(J, batches, budget),
            "graphs": lambda: _graphs(J, batches, budget),
            "scratch": lambda: scratch,
        }
        if budget.compiler is not None:
            forms = {"recorded": forms["recorded"]}
        elif not (budget.pays_recording and J.risk.parameters.functional):
            del forms["recorded"]
        return first_right(
            list(forms.items()), check, is_rough=J.relative_error is not None
        )


def _recorded(
    J: JacobianLinearOperator, batches: Sequence[Batch], budget: Budget
) -> Stacked:
    """Both products recorded together: they share what does not depend on a vector."""

    def vectors(X: Any) -> list[Blocks]:
        return [vector(J.risk), probe([J.risk.predicted(X).flatten()])]

    def products(
        params: Sequence[Tensor], X: Any, _: Any, vectors: list[Blocks]
    ) -> list[Blocks]:
        v, (u,) = vectors

        def predict(*p: Tensor) -> Tensor:
            return J.risk.predict(p, X).flatten()

        with TURN:
            _, Jv = jvp(predict, tuple(params), tuple(v))  # type: ignore[misc]
        _, vjp_fn = vjp(predict, *params)  # type: ignore[misc]
        return [[Jv], list(vjp_fn(u))]

    kept = replays(J.risk, batches, budget, vectors, products)
    rows = tuple(_replayed(*each) for each in kept.batches)
    return Stacked(rows, kept.nbytes, kept.compile_seconds)


def _replayed(products: Sequence[BatchProduct], vectors: list[Blocks]) -> JacobianOfBatch:
    forward, back = products
    return JacobianOfBatch(
        lambda V: forward(V)[0], lambda U: back([U]), vectors[1][0].numel()
    )


def _graphs(J: JacobianLinearOperator, batches: Sequence[Batch], budget: Budget) -> Stacked:
    """Autograd's graphs, as far as the budget allows."""
    v = probe([p[None] for p in J.risk.parameters.tensors])
    kept = kept_graphs(J.risk, batches, budget, lambda graph, X, _: _jvp(J, X, graph, v))
    pairs = zip(batches, kept.batches, strict=True)
    return Stacked(tuple(_on_graph(J, X, graph) for (X, _), graph in pairs), kept.nbytes)


def _on_graph(
    J: JacobianLinearOperator, X: Any, graph: KeptGraph | None
) -> JacobianOfBatch:
    """With a graph that is kept, or one for this time."""

    def forward(V: Blocks) -> Tensor:
        with J.risk.context():
            return _jvp(J, X, graph or KeptGraph(), V)

    def back(U: Tensor) -> Blocks:
        with J.risk.context():
            way = graph or KeptGraph()

            def cotangents(outputs: tuple[Tensor, ...]) -> Blocks:
                return [U.reshape(-1, *outputs[0].shape).to(outputs[0].dtype)]

            f = J.risk.function(X)
            return way.product(
                lambda: way.vjp(f, J.risk.parameters, cotangents, J.chunk_size)
            )

    return JacobianOfBatch(forward, back, J.risk.predicted(X).numel())


def _jvp(J: JacobianLinearOperator, X: Any, way: KeptGraph, V: Blocks) -> Tensor:
    """``J V`` of one batch, ``[K, R]``."""
    f = J.risk.function(X)
    (out,) = way.product(lambda: way.jvp(f, J.risk.parameters, V, J.chunk_size))
    return out.flatten(1)


def _scratch(J: JacobianLinearOperator, batches: Sequence[Batch]) -> Stacked:
    """The operator's own products, with nothing kept."""

    def of_batch(X: Any) -> JacobianOfBatch:
        def forward(V: Blocks) -> Tensor:
            with J.risk.context():
                return J.batch_jvp(X, V)

        def back(U: Tensor) -> Blocks:
            with J.risk.context():
                return J.batch_vjp(X, U)

        return JacobianOfBatch(forward, back, J.risk.predicted(X).numel())

    return Stacked(tuple(of_batch(X) for X, _ in batches))
