"""Hessian, GGN, empirical Fisher and Jacobian of a model over data, proven when built."""

from curvop.curvature.base import CurvatureLinearOperator
from curvop.curvature.determinism import NonDeterministicError, differences
from curvop.curvature.differentiated import DifferentiatedLinearOperator
from curvop.curvature.empirical_fisher import EFLinearOperator
from curvop.curvature.factorable import FactorableLinearOperator
from curvop.curvature.ggn import GGNLinearOperator
from curvop.curvature.hessian import HessianLinearOperator
from curvop.curvature.jacobian import (
    JacobianLinearOperator,
    TransposedJacobianLinearOperator,
)
from curvop.curvature.linearized import (
    Form,
    LinearizedJacobianLinearOperator,
    LinearizedLinearOperator,
    Products,
    refuse_if_changed,
    versions,
)
from curvop.curvature.output_factor import SEED, OutputFactor, Per, output_factor
from curvop.curvature.proof import EXACT, STOPPED, Proof, Truth, is_gradient, truth
from curvop.curvature.symmetry import check_columns

__all__ = [
    "EXACT",
    "SEED",
    "STOPPED",
    "CurvatureLinearOperator",
    "DifferentiatedLinearOperator",
    "EFLinearOperator",
    "FactorableLinearOperator",
    "Form",
    "GGNLinearOperator",
    "HessianLinearOperator",
    "JacobianLinearOperator",
    "LinearizedJacobianLinearOperator",
    "LinearizedLinearOperator",
    "NonDeterministicError",
    "OutputFactor",
    "Per",
    "Products",
    "Proof",
    "TransposedJacobianLinearOperator",
    "Truth",
    "check_columns",
    "differences",
    "is_gradient",
    "output_factor",
    "refuse_if_changed",
    "truth",
    "versions",
]
