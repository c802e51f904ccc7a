"""Linearised by recording the product: what does not depend on the vector is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from curvop.curvature import nested
from curvop.curvature.keeping import Effort, Kept, Piece, held, merged, storages
from curvop.curvature.merging import Batch
from curvop.curvature.probing import probe
from curvop.curvature.replay import Replay
from curvop.curvature.tracing import Recordable, bind, record
from curvop.operators.layout import Blocks

if TYPE_CHECKING:
    from curvop.curvature.base import CurvatureLinearOperator


def recorded(
    op: CurvatureLinearOperator, batches: Sequence[Batch], v: Blocks, effort: Effort
) -> Kept:
    """Replays of a recorded product, one recording for each shape of batch."""
    batches = merged(op, batches, effort.batch_size)
    params = [p.detach() for p in op._parameters.tensors]
    replays: dict[Any, Replay] = {}
    pieces: list[Piece] = []
    seen = held(op, batches)
    total, seconds = 0, 0.0
    for X, y in batches:
        data = list(nested.tensors((X, y)))
        key = (nested.structure((X, y)), tuple((t.shape, t.dtype) for t in data))
        is_new = key not in replays
        if is_new:
            replays[key] = _record(op, X, y, params, data, effort.compiler)
        replay, static = replays[key], (*params, *data)
        kept = replay.prepare(static)
        if is_new and effort.compiler is not None:
            seconds += replay.warm_up(kept, v)
        new = storages(kept, besides=seen)
        if not effort.allows(total + sum(new.values())):
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
        parameters = bind(op._parameters, tensors[:n])
        bound = op._with(_ways=(Recordable(),), _parameters=parameters)
        V = [v[None] for v in tensors[n + d :]]
        return [[b[0] for b in bound._matmat_blocks(inputs, targets, V)[0]]]

    (recording,) = record(product, [*params, *data], moving)
    return Replay(recording, compiler)
