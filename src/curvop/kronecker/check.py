"""The determinism check, with first derivatives only: more are not needed here."""

from __future__ import annotations

from curvop.curvature import CurvatureLinearOperator, differences
from curvop.operators import tolerance
from curvop.risk import gradient_over_data


def check(op: CurvatureLinearOperator) -> None:
    """Pass over the data twice and compare loss and gradient.

    Args:
        op: An operator of the same risk, not checked yet.

    Raises:
        NonDeterministicError: If the passes differ, with what differed and where.
        ValueError: If the loss is not finite, or the data does not fit.
    """
    with op.risk.context():
        first = gradient_over_data(op.risk, "determinism check")
        op.risk.divisor(*first[-2:])
        second = gradient_over_data(op.risk, "determinism check")
        rounding = tolerance(*(p.dtype for p in op.risk.parameters.tensors))
        if any(differences(first, second, rounding)):
            op.check_deterministic()  # a gradient may be rounding: products tell
