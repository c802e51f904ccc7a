"""Curvature matrices of neural networks as linear operators."""

from curvop import functional
from curvop._version import __version__
from curvop.curvature import (
    CurvatureLinearOperator,
    EFLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
    JacobianLinearOperator,
    LinearizedLinearOperator,
    NonDeterministicError,
    TransposedJacobianLinearOperator,
)
from curvop.estimate import Estimate
from curvop.operators import (
    BlockDiagonalLinearOperator,
    DenseLinearOperator,
    DiagonalLinearOperator,
    IdentityLinearOperator,
    LinearOperator,
    LowRankLinearOperator,
    as_operator,
    assume_psd,
    assume_symmetric,
)

__all__ = [
    "BlockDiagonalLinearOperator",
    "CurvatureLinearOperator",
    "DenseLinearOperator",
    "DiagonalLinearOperator",
    "EFLinearOperator",
    "Estimate",
    "GGNLinearOperator",
    "HessianLinearOperator",
    "IdentityLinearOperator",
    "JacobianLinearOperator",
    "LinearOperator",
    "LinearizedLinearOperator",
    "LowRankLinearOperator",
    "NonDeterministicError",
    "TransposedJacobianLinearOperator",
    "__version__",
    "as_operator",
    "assume_psd",
    "assume_symmetric",
    "functional",
]
