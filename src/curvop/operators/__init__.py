"""Linear algebra that knows nothing of networks."""

from curvop.operators.base import LinearOperator
from curvop.operators.errors import SingularSystemError
from curvop.operators.interop import as_operator
from curvop.operators.structured import (
    BlockDiagonalLinearOperator,
    DenseLinearOperator,
    DiagonalLinearOperator,
    IdentityLinearOperator,
    LowRankLinearOperator,
)
from curvop.operators.tags import assume_psd, assume_symmetric

__all__ = [
    "BlockDiagonalLinearOperator",
    "DenseLinearOperator",
    "DiagonalLinearOperator",
    "IdentityLinearOperator",
    "LinearOperator",
    "LowRankLinearOperator",
    "SingularSystemError",
    "as_operator",
    "assume_psd",
    "assume_symmetric",
]
