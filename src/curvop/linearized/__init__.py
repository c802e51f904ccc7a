"""The same matrices, with the work of a data pass kept for many products."""

from curvop.curvature import (
    Form,
    LinearizedJacobianLinearOperator,
    LinearizedLinearOperator,
)
from curvop.linearized.factored import ROWS_BYTES
from curvop.linearized.linearization import linearize, linearized_as, origin
from curvop.linearized.row_derivation import (
    Derive,
    RowsOfBatch,
    as_outputs,
    leads,
    rows_by_passes,
    rows_by_vmap,
    ways,
)
from curvop.linearized.rows import Dense, Outer, Rows, joined
from curvop.linearized.sandwich import NotFactorableError

__all__ = [
    "ROWS_BYTES",
    "Dense",
    "Derive",
    "Form",
    "LinearizedJacobianLinearOperator",
    "LinearizedLinearOperator",
    "NotFactorableError",
    "Outer",
    "Rows",
    "RowsOfBatch",
    "as_outputs",
    "joined",
    "leads",
    "linearize",
    "linearized_as",
    "origin",
    "rows_by_passes",
    "rows_by_vmap",
    "ways",
]
