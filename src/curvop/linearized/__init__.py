"""The same matrices, with the work of a data pass kept for many products."""

from curvop.curvature import (
    Form,
    LinearizedJacobianLinearOperator,
    LinearizedLinearOperator,
)
from curvop.linearized.factored import NotFactorableError
from curvop.linearized.linearization import linearize, linearized_as, origin
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
]
