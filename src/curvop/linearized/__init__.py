"""The same matrices, with the work of a data pass kept for many products."""

from curvop.linearized.factored import NotFactorableError
from curvop.linearized.linearization import linearize, linearized_as, origin
from curvop.linearized.operator import (
    Form,
    LinearizedJacobianLinearOperator,
    LinearizedLinearOperator,
    refuse_if_changed,
    versions,
)
from curvop.linearized.rows import ROWS_BYTES

__all__ = [
    "ROWS_BYTES",
    "Form",
    "LinearizedJacobianLinearOperator",
    "LinearizedLinearOperator",
    "NotFactorableError",
    "linearize",
    "linearized_as",
    "origin",
    "refuse_if_changed",
    "versions",
]
