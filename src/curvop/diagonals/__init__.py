"""Exact diagonals of curvature matrices."""

from curvop.diagonals.empirical_fisher import EFDiagonalLinearOperator
from curvop.diagonals.ggn import GGNDiagonalLinearOperator
from curvop.diagonals.hessian import HessianDiagonalLinearOperator

__all__ = [
    "EFDiagonalLinearOperator",
    "GGNDiagonalLinearOperator",
    "HessianDiagonalLinearOperator",
]
