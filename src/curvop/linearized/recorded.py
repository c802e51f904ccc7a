"""Linearised by recording the product: what does not depend on the vector is kept."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from curvop.linearized.budget import (
    BatchProduct,
    Budget,
    Kept,
    merged,
    new_storages,
    storages_in_use,
)
from curvop.linearized.replay import Replay
from curvop.linearized.tracing import Recordable, Recording, record
from curvop.operators import Blocks, probe
from curvop.risk import Batch, Predictions, Risk, nested

if TYPE_CHECKING:
    from curvop.curvature import CurvatureLinearOperator

# Products of one batch, each with its vector: (parameters, X, y, vectors) -> products.
Products = Callable[[Sequence[Tensor], Any, Any, list[Blocks]], list[Blocks]]


class Replays(NamedTuple):
    """The products of one batch, and the vectors that they were recorded with."""

    products: tuple[BatchProduct, ...]
    vectors: list[Blocks]


def recorded(
    op: CurvatureLinearOperator, batches: Sequence[Batch], v: Blocks, budget: Budget
) -> Kept[BatchProduct]:
    """Replays of a recorded product, one recording for each shape of batch."""

    def product(
        params: Sequence[Tensor], X: Any, y: Any, vectors: list[Blocks]
    ) -> list[Blocks]:
        V = [v[None] for v in vectors[0]]
        at = replace(op.risk.parameters, tensors=tuple(params))
        return [[b[0] for b in op.product_by(Recordable(), X, y, V, at)]]

    kept = replays(op.risk, batches, budget, lambda _: [vector(op.risk)], product)
    products = [each.products[0] for each in kept.batches]
    return Kept(products, kept.nbytes, kept.compile_seconds)


def vector(risk: Risk | Predictions) -> Blocks:
    """One to record with, over the parameters."""
    return [b[0] for b in probe([p.detach()[None] for p in risk.parameters.tensors])]


def replays(
    risk: Risk | Predictions,
    batches: Sequence[Batch],
    budget: Budget,
    vectors: Callable[[Any], list[Blocks]],
    products: Products,
) -> Kept[Replays]:
    """Record products once for each shape of batch, and keep what they share.

    Args:
        risk: What they are products of.
        batches: To be put together.
        budget: What may be kept; of other batches it is computed anew each time.
        vectors: What to record the products of one batch ``X`` with, a vector for each.
        products: The products.
    """
    batches = merged(risk, batches, budget.batch_size)
    params = [p.detach() for p in risk.parameters.tensors]
    known: dict[Any, tuple[list[Replay], list[Blocks]]] = {}
    found: list[Replays] = []
    seen = storages_in_use(risk, batches)
    total, seconds = 0, 0.0
    for X, y in batches:
        data = list(nested.tensors((X, y)))
        key = (nested.structure((X, y)), tuple((t.shape, t.dtype) for t in data))
        is_new = key not in known
        if is_new:
            with_ = vectors(X)
            recorded = _record(products, (X, y), params, data, with_)
            known[key] = [Replay(each, budget.compiler) for each in recorded], with_
        each, with_ = known[key]
        static = (*params, *data)
        kept = each[0].prepare(static)
        if is_new and budget.compiler is not None:
            for replay, v in zip(each, with_, strict=True):
                seconds += replay.warm_up(kept, [b[None] for b in v])
        new = new_storages(kept, besides=seen)
        fits = budget.allows(total + sum(new.values()))
        if fits:
            seen |= new.keys()
            total += sum(new.values())
        run = (r.with_kept(kept) if fits else r.from_scratch(static) for r in each)
        found.append(Replays(tuple(run), with_))
    return Kept(found, total, seconds)


def _record(
    products: Products,
    batch: Batch,
    params: list[Tensor],
    data: list[Tensor],
    vectors: list[Blocks],
) -> list[Recording]:
    """Record the products as functions of parameters, data and vectors."""
    n, d = len(params), len(data)

    def product(*tensors: Tensor) -> list[Blocks]:
        fresh, rest = iter(tensors[n : n + d]), iter(tensors[n + d :])
        X, y = nested.map_tensors(lambda _: next(fresh), batch)
        moving = [list(itertools.islice(rest, len(v))) for v in vectors]
        return products(tensors[:n], X, y, moving)

    return record(product, [*params, *data], *vectors)
