"""Linear algebra that knows nothing of networks."""

from curvop.operators.interop import SciPyLinearOperator
from curvop.operators.layout import Blocks, Form, Space, Vector, admit, read
from curvop.operators.linear_operator import (
    LinearOperator,
    SingularSystemError,
    TransposedLinearOperator,
    as_operator,
    properties,
)
from curvop.operators.probing import (
    differ,
    norm,
    norms,
    not_finite,
    probe,
    refuse_not_finite,
    tolerance,
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
    "SingularSystemError",
    "Space",
    "TransposedLinearOperator",
    "Vector",
    "admit",
    "as_operator",
    "assume_psd",
    "assume_symmetric",
    "differ",
    "norm",
    "norms",
    "not_finite",
    "probe",
    "properties",
    "read",
    "refuse_not_finite",
    "tolerance",
]
