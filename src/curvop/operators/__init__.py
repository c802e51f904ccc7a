"""Linear algebra that knows nothing of networks."""

from curvop.operators.interop import SciPyLinearOperator
from curvop.operators.layout import Blocks, Form, Side, Space, Vector, admit, read
from curvop.operators.linear_operator import (
    LinearOperator,
    SingularSystemError,
    TransposedLinearOperator,
    as_operator,
)
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
    "Blocks",
    "DenseLinearOperator",
    "DiagonalLinearOperator",
    "Form",
    "IdentityLinearOperator",
    "LinearOperator",
    "LowRankLinearOperator",
    "SciPyLinearOperator",
    "Side",
    "SingularSystemError",
    "Space",
    "TransposedLinearOperator",
    "Vector",
    "admit",
    "as_operator",
    "assume_psd",
    "assume_symmetric",
    "read",
]
