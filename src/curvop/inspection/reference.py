"""What products are compared with: the truth that operators are proven by."""

from __future__ import annotations

from dataclasses import replace

from curvop.curvature import CurvatureLinearOperator, Truth, truth
from curvop.inspection.results import Matrix, Reference, first_line
from curvop.operators import Blocks
from curvop.risk import Batch


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
        with op.risk.surroundings():
            found = truth(op.subject(*batch), v)
            Z = op.risk.divisor_over([batch])
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


def exact(op: CurvatureLinearOperator, batch: Batch) -> CurvatureLinearOperator:
    """The operator of one batch in double precision.

    Raises:
        MemoryError: If there is too little memory.
        RuntimeError: If a copy of the model predicts something else.
    """
    made, X, y = op.in_double(*batch)
    return made.with_risk(replace(made.risk, data=replace(op.risk.data, source=[(X, y)])))
