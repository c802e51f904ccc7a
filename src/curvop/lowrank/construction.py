"""From a curvature operator to its factor: pass over the data, derive columns, verify."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from curvop.curvature import refuse_if_changed, versions
from curvop.linearized import Derive, Rows, RowsOfBatch, joined, ways
from curvop.lowrank.columns import FactorColumnsLinearOperator, Source
from curvop.lowrank.gram_factor import GramFactor
from curvop.operators import Blocks, probe, tolerance
from curvop.risk import constant, refuse_reading

if TYPE_CHECKING:
    from curvop.curvature import CurvatureLinearOperator, FactorableLinearOperator


def factor(
    op: FactorableLinearOperator,
    *,
    memory_budget: int | None,
    gram_dtype: torch.dtype | None,
) -> GramFactor:
    """Implements :meth:`FactorableLinearOperator.factor`.

    Args:
        op: The operator.
        memory_budget: Bytes for columns.
        gram_dtype: Type of the Gram matrix.

    Raises:
        TypeError: If an argument is of the wrong kind.
        ValueError: If it is out of range, or the matrix has no such factor.
    """
    _check(op, memory_budget, gram_dtype)
    v = [
        b.to(op.dtype)
        for b in probe([p.detach()[None] for p in op.risk.parameters.tensors])
    ]
    with op.risk.context():
        data = list(op.risk.data.batches("factor"))
        products = [op.sum_over([batch], v)[0] for batch in data]
        refuse_reading(op.risk, *data[0])
        if not any(bool(b.any()) for sums in products for b in sums[:-2]):
            op.risk.check_dependence()
        loss, share = (torch.stack([sums[i] for sums in products]).sum() for i in (-2, -1))
        Z = op.risk.divisor(loss, share)
        pairs = [
            (_batch(op, X, y, Z), [b / Z for b in sums[:-2]])
            for (X, y), sums in zip(data, products, strict=True)
            if op.risk.data.batch_size(X, y)
        ]
        sources = _sources(op, pairs, v, memory_budget)
    V = FactorColumnsLinearOperator(
        sources, op.output_space, dtype=op.dtype, device=op.device
    )
    return GramFactor(V, gram_dtype or torch.promote_types(op.dtype, torch.float32))


def _batch(op: FactorableLinearOperator, X: Any, y: Any, Z: Tensor) -> RowsOfBatch:
    """``S / √Z`` of one batch."""
    with torch.no_grad():
        prediction = op.risk.predict([constant(p) for p in op.risk.parameters.tensors], X)
    columns = op.output_factor(prediction, X, y).blocks(slice(None))
    S = [s / Z.sqrt().to(s.dtype) for s in columns]
    return RowsOfBatch(op.risk.parameters, X, S, op.risk.data.batch_size(X, y))


def _sources(
    op: CurvatureLinearOperator,
    pairs: Sequence[tuple[RowsOfBatch, Blocks]],
    v: Blocks,
    budget: int | None,
) -> list[Source]:
    """Where the columns come from: kept if they fit; verified in any case."""
    most = max(batch.N for batch, _ in pairs)
    step = most if budget is None else _data_at_once([b for b, _ in pairs], budget)
    before = versions(op.risk.parameters.watched)

    def source(batch: RowsOfBatch, derive: Derive, data: range) -> Source:
        def anew() -> Rows:
            refuse_if_changed(op.risk.parameters.watched, before)
            with op.risk.context():
                return derive(batch, data)

        if step >= most:
            return Source.kept(derive(batch, data))
        return Source(len(data) * batch.R, anew)

    bar = tqdm(pairs, "columns", disable=not op.risk.data.progressbar)
    sources = [s for batch, right in bar for s in _verified(batch, v, right, step, source)]
    if step < most:
        return sources
    return [Source.kept(rows) for rows in joined([s.rows() for s in sources])]


def _verified(
    batch: RowsOfBatch,
    v: Blocks,
    right: Blocks,
    step: int,
    source: Callable[[RowsOfBatch, Derive, range], Source],
) -> list[Source]:
    """The columns of one batch in the first way whose product with ``v`` is right.

    Raises:
        ValueError: If there is none.
    """
    chunks = [range(n, min(n + step, batch.N)) for n in range(0, batch.N, step)]
    *cheaper, last = ways(batch.at)
    for derive in cheaper:
        try:
            sources = [source(batch, derive, data) for data in chunks]
            if _error(sources, v, right) <= tolerance(right[0].dtype):
                return sources
        except Exception:
            continue  # a matter of speed only
    sources = [source(batch, last, data) for data in chunks]
    error = _error(sources, v, right)
    if not error <= tolerance(right[0].dtype):
        raise ValueError(
            f"V Vᵀ differs from the operator by {error:.1e} relative: the loss of a datum "
            "depends on other data of its batch, so that its Hessian does not fall apart "
            "into columns for each datum. Pass a loss that is a sum over data, or "
            "multiply with the operator itself."
        )
    return sources


def _error(sources: Sequence[Source], v: Blocks, right: Blocks) -> float:
    """Of ``V Vᵀ v``, relative."""
    got = [torch.zeros_like(b) for b in right]
    for source in sources:
        rows = source.rows()
        parts = rows.vjp(rows.jvp(v), [b.shape[1:] for b in v])
        for total, part in zip(got, parts, strict=True):
            total += part
    scale = max(float(b.abs().max()) for b in right)
    error = max(float((a - b).abs().max()) for a, b in zip(got, right, strict=True))
    return error / scale if scale else error


def _data_at_once(batches: Sequence[RowsOfBatch], budget: int) -> int:
    """How many data's columns to have at once, two pieces being multiplied.

    Raises:
        ValueError: If the columns of one datum do not fit.
    """
    each = [_nbytes_of_one(batch) for batch in batches]
    total = sum(n * batch.N for n, batch in zip(each, batches, strict=True))
    if total <= budget:
        return max(batch.N for batch in batches)
    if 2 * max(each) > budget:
        raise ValueError(
            f"Expected a memory_budget of at least {2 * max(each):,} bytes, for "
            f"the columns of two data, got {budget:,}."
        )
    return budget // (2 * max(each))


def _nbytes_of_one(batch: RowsOfBatch) -> int:
    """Bytes of the columns of one datum."""
    for derive in ways(batch.at):
        try:
            return derive(batch, range(1)).nbytes
        except Exception as error:
            reason = error
    raise reason


def _check(op: CurvatureLinearOperator, memory_budget: object, gram_dtype: object) -> None:
    """Refuse what has no factor, or no meaning."""
    if len(op.diagonal_blocks) > 1:
        raise ValueError(
            "A block-diagonal matrix has no factor with few columns. Leave block_sizes "
            "out, or build an operator for the parameters of each block."
        )
    if op.risk.process_group is not None:
        raise ValueError(
            "A factor needs all of its data in one process. Leave process_group out."
        )
    if memory_budget is not None:
        if not isinstance(memory_budget, Integral) or isinstance(memory_budget, bool):
            raise TypeError(
                f"Expected memory_budget as an integer, got {type(memory_budget).__name__}."
            )
        if memory_budget < 1:
            raise ValueError(f"Expected a positive memory_budget, got {memory_budget}.")
    if gram_dtype is not None:
        if not isinstance(gram_dtype, torch.dtype):
            raise TypeError(
                f"Expected gram_dtype as a torch.dtype, got {type(gram_dtype).__name__}."
            )
        least = torch.promote_types(op.dtype, torch.float32)
        if torch.promote_types(gram_dtype, least) != gram_dtype:
            raise ValueError(
                f"Expected gram_dtype of at least the precision {least}, got {gram_dtype}."
            )
