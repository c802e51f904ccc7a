"""Chain networks on one batch: the exact inverse of the Hessian, linear in depth."""

from curvop.direct.hessian import ChainHessianLinearOperator
from curvop.direct.inverse import ChainInverseLinearOperator

__all__ = [
    "ChainHessianLinearOperator",
    "ChainInverseLinearOperator",
]
