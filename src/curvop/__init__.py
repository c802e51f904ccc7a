"""Curvature matrices of neural networks as linear operators."""

from curvop import functional, plot
from curvop._version import __version__
from curvop.curvature import (
    CurvatureLinearOperator,
    EFLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
    JacobianLinearOperator,
    LinearizedLinearOperator,
    NonDeterministicError,
    Proof,
    TransposedJacobianLinearOperator,
)
from curvop.derivatives import WrongDerivativeError
from curvop.diagonals import (
    EFDiagonalLinearOperator,
    GGNDiagonalLinearOperator,
    HessianDiagonalLinearOperator,
)
from curvop.direct import (
    ChainHessianLinearOperator,
    ChainInverseLinearOperator,
)
from curvop.estimate import DiagonalEstimate, Estimate
from curvop.estimators import (
    block_traces,
    diagonal,
    effective_dimension,
    frobenius_norm,
    logdet,
    trace,
    trace_function,
)
from curvop.inspection import Preflight, preflight
from curvop.kronecker import (
    EMA,
    Eigendecomposition,
    EKFACLinearOperator,
    KFACLinearOperator,
    KroneckerInverseLinearOperator,
)
from curvop.lowrank import (
    FactorColumnsLinearOperator,
    GramInverseLinearOperator,
)
from curvop.monitoring import CurvatureMonitor
from curvop.operators import (
    BlockDiagonalLinearOperator,
    DenseLinearOperator,
    DiagonalLinearOperator,
    IdentityLinearOperator,
    LinearOperator,
    LowRankLinearOperator,
    SingularSystemError,
    as_operator,
    assume_psd,
    assume_symmetric,
)
from curvop.plot import Landscape, loss_landscape
from curvop.reporting import Report, report
from curvop.risk import register_predictive
from curvop.solvers import (
    CGInverseLinearOperator,
    LSMRInverseLinearOperator,
    MINRESInverseLinearOperator,
    NeumannInverseLinearOperator,
    NotConvergedError,
    Solution,
    cg,
    cg_shifts,
    jacobi_preconditioner,
    lsmr,
    minres,
    nystrom_preconditioner,
)
from curvop.spectra import (
    Density,
    Eigenpairs,
    eigsh,
    spectral_density,
    svds,
)

__all__ = [
    "EMA",
    "BlockDiagonalLinearOperator",
    "CGInverseLinearOperator",
    "ChainHessianLinearOperator",
    "ChainInverseLinearOperator",
    "CurvatureLinearOperator",
    "CurvatureMonitor",
    "DenseLinearOperator",
    "Density",
    "DiagonalEstimate",
    "DiagonalLinearOperator",
    "EFDiagonalLinearOperator",
    "EFLinearOperator",
    "EKFACLinearOperator",
    "Eigendecomposition",
    "Eigenpairs",
    "Estimate",
    "FactorColumnsLinearOperator",
    "GGNDiagonalLinearOperator",
    "GGNLinearOperator",
    "GramInverseLinearOperator",
    "HessianDiagonalLinearOperator",
    "HessianLinearOperator",
    "IdentityLinearOperator",
    "JacobianLinearOperator",
    "KFACLinearOperator",
    "KroneckerInverseLinearOperator",
    "LSMRInverseLinearOperator",
    "Landscape",
    "LinearOperator",
    "LinearizedLinearOperator",
    "LowRankLinearOperator",
    "MINRESInverseLinearOperator",
    "NeumannInverseLinearOperator",
    "NonDeterministicError",
    "NotConvergedError",
    "Preflight",
    "Proof",
    "Report",
    "SingularSystemError",
    "Solution",
    "TransposedJacobianLinearOperator",
    "WrongDerivativeError",
    "__version__",
    "as_operator",
    "assume_psd",
    "assume_symmetric",
    "block_traces",
    "cg",
    "cg_shifts",
    "diagonal",
    "effective_dimension",
    "eigsh",
    "frobenius_norm",
    "functional",
    "jacobi_preconditioner",
    "logdet",
    "loss_landscape",
    "lsmr",
    "minres",
    "nystrom_preconditioner",
    "plot",
    "preflight",
    "register_predictive",
    "report",
    "spectral_density",
    "svds",
    "trace",
    "trace_function",
]
