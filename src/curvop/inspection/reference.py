"""What products are compared with: the truth that operators are proven by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from curvop.curvature.base import CurvatureLinearOperator
from curvop.curvature.merging import Batch
from curvop.curvature.proof import Truth, subject, truth
from curvop.curvature.replica import doubled
from curvop.curvature.surroundings import surroundings
from curvop.inspection.results import Matrix, Reference, first_line
from curvop.operators.layout import Blocks


def reference(
    matrix: Matrix, op: CurvatureLinearOperator, batch: Batch, v: Blocks
) -> tuple[Truth | None, Reference]:
    """The product of the matrix of one batch, by differences of first derivatives.

    Args:
        matrix: Its name.
        op: The operator, in any way to differentiate.
        batch: The batch.
        v: What to multiply, ``[1, *n_i]``.
    """
    try:
        with surroundings(op._data):
            found = truth(subject(op, *batch), v)
            Z = divisor(op, [batch])
    except Exception as error:
        found = f"{type(error).__name__}: {first_line(error)}"
    if isinstance(found, str):
        return None, Reference(matrix, None, None, found)
    precision = str(found.subject.dtype)[6:]
    product = [b / Z.to(b) for b in found.product]
    return (
        replace(found, product=product, order=found.order / float(Z)),
        Reference(matrix, "finite differences", precision, None, found.error),
    )


def divisor(op: CurvatureLinearOperator, batches: Sequence[Batch]) -> Tensor:
    """What the mean over these batches divides by."""

    def tally(batch: Batch) -> tuple[Tensor, Tensor]:
        X, y = batch
        with torch.no_grad():
            params = [p.detach() for p in op._parameters.tensors]
            loss, share = op._tally(op._predict(params, X), y)
        return loss, share

    loss, share = zip(*map(tally, batches), strict=True)
    return op._divisor(torch.stack(loss).sum(), torch.stack(share).sum())


def exact(op: CurvatureLinearOperator, batch: Batch) -> CurvatureLinearOperator:
    """The operator of one batch in double precision.

    Raises:
        MemoryError: If there is too little memory.
        RuntimeError: If a copy of the model predicts something else.
    """
    made, X, y = doubled(op, *batch)
    return made._with(_data=replace(op._data, source=[(X, y)]))
