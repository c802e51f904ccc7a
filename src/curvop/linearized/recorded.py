"""Linearised by recording the product: what does not depend on the vector is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from curvop.linearized.budget import BatchProduct, Budget, Kept, held, merged, storages
from curvop.linearized.replay import Replay
from curvop.linearized.tracing import Recordable, bind, record
from curvop.operators import Blocks, probe
from curvop.risk import Batch, nested

if TYPE_CHECKING:
    from curvop.curvature import CurvatureLinearOperator


def recorded(
    op: CurvatureLinearOperator, batches: Sequence[Batch], v: Blocks, budget: Budget
) -> Kept:
    """Replays of a recorded product, one recording for each shape of batch."""
    batches = merged(op.risk, batches, budget.batch_size)
    params = [p.detach() for p in op.risk.parameters.tensors]
    replays: dict[Any, Replay] = {}
    pieces: list[BatchProduct] = []
    seen = held(op.risk, batches)
    total, seconds = 0, 0.0
    for X, y in batches:
        data = list(nested.tensors((X, y)))
        key = (nested.structure((X, y)), tuple((t.shape, t.dtype) for t in data))
        is_new = key not in replays
        if is_new:
            replays[key] = _record(op, X, y, params, data, budget.compiler)
        replay, static = replays[key], (*params, *data)
        kept = replay.prepare(static)
        if is_new and budget.compiler is not None:
            seconds += replay.warm_up(kept, v)
        new = storages(kept, besides=seen)
        if not budget.allows(total + sum(new.values())):
            pieces.append(replay.from_scratch(static))
            continue
        seen |= new.keys()
        total += sum(new.values())
        pieces.append(replay.with_kept(kept))
    return Kept(pieces, total, seconds)


def _record(
    op: CurvatureLinearOperator,
    X: Any,
    y: Any,
    params: list[Tensor],
    data: list[Tensor],
    compiler: str | None,
) -> Replay:
    """Record the product of one batch as a function of parameters, data and vector."""
    n, d = len(params), len(data)
    moving = [b[0] for b in probe([p[None] for p in params])]

    def product(*tensors: Tensor) -> list[list[Tensor]]:
        fresh = iter(tensors[n : n + d])
        inputs, targets = nested.map_tensors(lambda _: next(fresh), (X, y))
        parameters = bind(op.risk.parameters, tensors[:n])
        V = [v[None] for v in tensors[n + d :]]
        return [[b[0] for b in op.product_by(Recordable(), inputs, targets, V, parameters)]]

    (recording,) = record(product, [*params, *data], moving)
    return Replay(recording, compiler)
