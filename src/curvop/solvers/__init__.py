"""Linear systems: solvers, preconditioners, inverse operators."""

from curvop.solvers.cg import cg
from curvop.solvers.cg_shifts import cg_shifts
from curvop.solvers.inverse import (
    CGInverseLinearOperator,
    LSMRInverseLinearOperator,
    MINRESInverseLinearOperator,
    NeumannInverseLinearOperator,
)
from curvop.solvers.lsmr import lsmr
from curvop.solvers.minres import minres
from curvop.solvers.preconditioners import (
    jacobi_preconditioner,
    nystrom_preconditioner,
)
from curvop.solvers.solution import NotConvergedError, Solution

__all__ = [
    "CGInverseLinearOperator",
    "LSMRInverseLinearOperator",
    "MINRESInverseLinearOperator",
    "NeumannInverseLinearOperator",
    "NotConvergedError",
    "Solution",
    "cg",
    "cg_shifts",
    "jacobi_preconditioner",
    "lsmr",
    "minres",
    "nystrom_preconditioner",
]
