"""Jacobians linearised: the rows of each batch, one batch after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.func import jvp, vjp

from curvop.curvature import Form, JacobianLinearOperator
from curvop.derivatives import is_refusal
from curvop.linearized.budget import BatchProduct, Budget, held, merged, noted, storages
from curvop.linearized.graphs import KeptGraph
from curvop.linearized.replay import Replay
from curvop.linearized.tracing import record
from curvop.linearized.verification import verify, verify_columns, warn_not_kept
from curvop.operators import Blocks, probe, tolerance
from curvop.risk import TURN, nested


@dataclass(frozen=True)
class RowsOfBatch:
    """The Jacobian of one batch.

    Attributes:
        push: ``J V``, ``[K, *n_i] -> [K, R]``.
        pull: ``Jᵀ U``, ``[K, R] -> [K, *n_i]``.
        rows: Number ``R`` of rows.
    """

    push: Callable[[Blocks], Tensor]
    pull: Callable[[Tensor], Blocks]
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

    batches: tuple[RowsOfBatch, ...]
    nbytes: int = 0
    compile_seconds: float = 0.0
    travels: bool = False

    def multiply(self, V: Blocks) -> Blocks:
        """``J V``, ``[K, N·C]``."""
        return [torch.cat([batch.push(V) for batch in self.batches], 1)]

    def multiply_transposed(self, U: Blocks) -> Blocks:
        """``Jᵀ U``."""
        parts = U[0].flatten(1).split([batch.rows for batch in self.batches], 1)
        first, *others = zip(self.batches, parts, strict=True)
        sums = [b.to(U[0].dtype, copy=True) for b in first[0].pull(first[1])]
        for batch, u in others:
            for total, part in zip(sums, batch.pull(u), strict=True):
                total += part
        return sums


def first_form(J: JacobianLinearOperator, budget: Budget) -> tuple[Form, Stacked]:
    """The cheapest form that gives the right products."""
    J = J.with_kernels_of_its_way()
    with J.risk.context():
        inputs = [X for X, _ in J.risk.data.batches("linearize")]
        scratch = _scratch(J, inputs)
        v, u = _probes(J)
        right = scratch.multiply(v), scratch.multiply_transposed(u)
        if not any(bool(b.any()) for b in right[1]):
            J.risk.check_dependence()

        def checked(products: Stacked) -> Stacked:
            rounding = max(tolerance(J.dtype), 10 * (J.relative_error or 0.0))
            for multiply, w, Aw in (
                (products.multiply, v, right[0]),
                (products.multiply_transposed, u, right[1]),
            ):
                one = multiply(w)
                verify(one, Aw, rounding)
                verify_columns(one, multiply, w, rounding)
            return products

        if budget.compiler or (budget.pays_recording and J.risk.parameters.functional):
            try:
                return "recorded", checked(_recorded(J, inputs, budget))
            except Exception as error:
                if budget.compiler or not is_refusal(error):
                    raise
                warn_not_kept("recorded", error)
        try:
            return "graphs", checked(_graphs(J, inputs, budget))
        except Exception as error:
            if not is_refusal(error):
                raise
            if J.relative_error is None:
                warn_not_kept("graphs", error)
        return "scratch", checked(scratch)


def _probes(J: JacobianLinearOperator) -> tuple[Blocks, Blocks]:
    """A vector of each space, one column."""
    v = probe([p.detach()[None] for p in J.risk.parameters.tensors])
    u = probe([torch.empty(1, J.shape[0], dtype=J.dtype, device=J.device)])
    return v, u


def _recorded(J: JacobianLinearOperator, inputs: Sequence[Any], budget: Budget) -> Stacked:
    """Both products recorded together: they share what does not depend on a vector."""
    pairs = merged(J.risk, [(X, None) for X in inputs], budget.batch_size)
    params = [p.detach() for p in J.risk.parameters.tensors]
    known: dict[Any, tuple[Replay, Replay, int]] = {}
    batches: list[RowsOfBatch] = []
    seen = held(J.risk, pairs)
    total, seconds = 0, 0.0
    for X, _ in pairs:
        data = list(nested.tensors(X))
        key = (nested.structure(X), tuple((t.shape, t.dtype) for t in data))
        is_new = key not in known
        if is_new:
            known[key] = _record(J, X, params, data, budget.compiler)
        push, pull, rows = known[key]
        static = (*params, *data)
        kept = push.prepare(static)
        if is_new and budget.compiler is not None:
            seconds += push.warm_up(kept, probe([p[None] for p in params]))
            seconds += pull.warm_up(kept, [kept[0].new_zeros(1, rows)])
        new = storages(kept, besides=seen)
        if budget.allows(total + sum(new.values())):
            seen |= new.keys()
            total += sum(new.values())
            batches.append(_replayed(push.with_kept(kept), pull.with_kept(kept), rows))
        else:
            both = push.from_scratch(static), pull.from_scratch(static)
            batches.append(_replayed(*both, rows))
    return Stacked(tuple(batches), total, seconds)


def _record(
    J: JacobianLinearOperator,
    X: Any,
    params: list[Tensor],
    data: list[Tensor],
    compiler: str | None,
) -> tuple[Replay, Replay, int]:
    """``J v`` and ``Jᵀ u`` of one batch as functions of parameters, data and vector."""
    n, d = len(params), len(data)
    moving = [b[0] for b in probe([p[None] for p in params])]
    with torch.no_grad():
        output = J.risk.predict(params, X)
    u = probe([output.flatten()])

    def product(*tensors: Tensor) -> list[list[Tensor]]:
        fresh = iter(tensors[n : n + d])
        inputs = nested.map_tensors(lambda _: next(fresh), X)
        v, u = tensors[n + d : -1], tensors[-1]

        def predict(*p: Tensor) -> Tensor:
            return J.risk.predict(p, inputs).flatten()

        with TURN:
            _, Jv = jvp(predict, tensors[:n], v)  # type: ignore[misc]
        _, pull = vjp(predict, *tensors[:n])  # type: ignore[misc]
        return [[Jv], list(pull(u))]

    recordings = record(product, [*params, *data], moving, u)
    push, pull = (Replay(recording, compiler) for recording in recordings)
    return push, pull, output.numel()


def _replayed(push: BatchProduct, pull: BatchProduct, rows: int) -> RowsOfBatch:
    return RowsOfBatch(lambda V: push(V)[0], lambda U: pull([U]), rows)


def _graphs(J: JacobianLinearOperator, inputs: Sequence[Any], budget: Budget) -> Stacked:
    """Autograd's graphs, as far as the budget allows."""
    batches: list[RowsOfBatch] = []
    besides, total = held(J.risk, [(X, None) for X in inputs]), 0
    for X in inputs:
        saved: dict[int, int] = {}
        kept: KeptGraph | None = KeptGraph()
        with noted(saved, besides=besides):
            (out,) = _once(J, X, kept, probe([p[None] for p in J.risk.parameters.tensors]))
        if budget.allows(total + sum(saved.values())):
            total += sum(saved.values())
        else:
            kept = None
        batches.append(_graph_batch(J, X, kept, out.numel()))
    return Stacked(tuple(batches), total)


def _graph_batch(
    J: JacobianLinearOperator, X: Any, kept: KeptGraph | None, rows: int
) -> RowsOfBatch:
    def push(V: Blocks) -> Tensor:
        with J.risk.context():
            return _once(J, X, kept, V)[0].flatten(1)

    def pull(U: Tensor) -> Blocks:
        with J.risk.context():
            way = kept or KeptGraph()

            def cotangents(outputs: tuple[Tensor, ...]) -> Blocks:
                return [U.reshape(-1, *outputs[0].shape).to(outputs[0].dtype)]

            f = J.risk.function(X)
            return way.product(
                lambda: way.vjp(f, J.risk.parameters, cotangents, J.chunk_size)
            )

    return RowsOfBatch(push, pull, rows)


def _once(J: JacobianLinearOperator, X: Any, kept: KeptGraph | None, V: Blocks) -> Blocks:
    """``J V`` of one batch, with a graph that is kept or one for this time."""
    way = kept or KeptGraph()
    f = J.risk.function(X)
    return way.product(lambda: way.jvp(f, J.risk.parameters, V, J.chunk_size))


def _scratch(J: JacobianLinearOperator, inputs: Sequence[Any]) -> Stacked:
    """The operator's own products, with nothing kept."""

    def batch(X: Any) -> RowsOfBatch:
        rows = J.risk.predicted(X).numel()

        def push(V: Blocks) -> Tensor:
            with J.risk.context():
                return J.batch_jvp(X, V)

        def pull(U: Tensor) -> Blocks:
            with J.risk.context():
                return J.batch_vjp(X, U)

        return RowsOfBatch(push, pull, rows)

    return Stacked(tuple(batch(X) for X in inputs))
