"""Ways to differentiate the function of one batch."""

from curvop.derivatives.choice import (
    CALLED,
    DOES,
    Way,
    WrongDerivativeError,
    candidates,
    first_line,
    first_that_works,
    is_refusal,
    warn_of_change,
)
from curvop.derivatives.columns import (
    ChunkSize,
    apply_each,
    check_chunk_size,
    chunks,
    gather,
    leading,
    sized,
    some_columns,
    trailing,
)
from curvop.derivatives.composed import vectorised, with_kernels_of
from curvop.derivatives.differences import Differences, InaccurateError
from curvop.derivatives.differentiation import (
    Aux,
    Cotangents,
    Differentiable,
    Differentiation,
    Linearization,
    Middle,
    OnOneGraph,
    Outputs,
    RiskDifferentiation,
    only_tensor,
)
from curvop.derivatives.double_backward import DoubleBackward
from curvop.derivatives.torch_func import TorchFunc, hessian_map

__all__ = [
    "CALLED",
    "DOES",
    "Aux",
    "ChunkSize",
    "Cotangents",
    "Differences",
    "Differentiable",
    "Differentiation",
    "DoubleBackward",
    "InaccurateError",
    "Linearization",
    "Middle",
    "OnOneGraph",
    "Outputs",
    "RiskDifferentiation",
    "TorchFunc",
    "Way",
    "WrongDerivativeError",
    "apply_each",
    "candidates",
    "check_chunk_size",
    "chunks",
    "first_line",
    "first_that_works",
    "gather",
    "hessian_map",
    "is_refusal",
    "leading",
    "only_tensor",
    "sized",
    "some_columns",
    "trailing",
    "vectorised",
    "warn_of_change",
    "with_kernels_of",
]
