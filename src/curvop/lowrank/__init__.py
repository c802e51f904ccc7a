"""Curvature matrices of few data in factor form ``A = V Vᵀ``."""

from curvop.lowrank.columns import FactorColumnsLinearOperator
from curvop.lowrank.construction import factor
from curvop.lowrank.directions import Directions, NewtonStep
from curvop.lowrank.gram_factor import GramFactor
from curvop.lowrank.inverse import GramInverseLinearOperator

__all__ = [
    "Directions",
    "FactorColumnsLinearOperator",
    "GramFactor",
    "GramInverseLinearOperator",
    "NewtonStep",
    "factor",
]
