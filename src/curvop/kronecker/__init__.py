"""Kronecker-factored approximate curvature."""

from curvop.kronecker.ema import EMA
from curvop.kronecker.inverse import KroneckerInverseLinearOperator
from curvop.kronecker.operator import EKFACLinearOperator, KFACLinearOperator
from curvop.kronecker.spectrum import Eigendecomposition

__all__ = [
    "EMA",
    "EKFACLinearOperator",
    "Eigendecomposition",
    "KFACLinearOperator",
    "KroneckerInverseLinearOperator",
]
