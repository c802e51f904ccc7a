"""Matrices of an empirical risk."""

from curvop.curvature.base import CurvatureLinearOperator
from curvop.curvature.determinism import NonDeterministicError
from curvop.curvature.differentiation import WrongDerivativeError
from curvop.curvature.empirical_fisher import EFLinearOperator
from curvop.curvature.ggn import GGNLinearOperator
from curvop.curvature.hessian import HessianLinearOperator
from curvop.curvature.jacobian import (
    JacobianLinearOperator,
    TransposedJacobianLinearOperator,
)
from curvop.curvature.jacobian_linearization import LinearizedJacobianLinearOperator
from curvop.curvature.linearization import LinearizedLinearOperator
from curvop.curvature.predictive import register_predictive
from curvop.curvature.proof import Proof

__all__ = [
    "CurvatureLinearOperator",
    "EFLinearOperator",
    "GGNLinearOperator",
    "HessianLinearOperator",
    "JacobianLinearOperator",
    "LinearizedJacobianLinearOperator",
    "LinearizedLinearOperator",
    "NonDeterministicError",
    "Proof",
    "TransposedJacobianLinearOperator",
    "WrongDerivativeError",
    "register_predictive",
]
