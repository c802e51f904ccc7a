"""The determinism check, with first derivatives only: more are not needed here."""

from __future__ import annotations

from curvop.curvature.base import CurvatureLinearOperator
from curvop.curvature.determinism import (
    check_deterministic,
    differences,
    gradient_over_data,
)
from curvop.curvature.probing import tolerance
from curvop.curvature.surroundings import surroundings


def check(op: CurvatureLinearOperator) -> None:
    """Pass over the data twice and compare loss and gradient.

    Args:
        op: An operator of the same risk, not checked yet.

    Raises:
        NonDeterministicError: If the passes differ, with what differed and where.
        ValueError: If the loss is not finite, or the data does not fit.
    """
    with surroundings(op._data):
        first = gradient_over_data(op)
        op._divisor(*first[-2:])
        second = gradient_over_data(op)
        rounding = tolerance(*(p.dtype for p in op._parameters.tensors))
        if any(differences(first, second, rounding)):
            check_deterministic(op)  # a gradient may be nothing but rounding: products tell
