"""Ways to differentiate the function of one batch."""

from curvop.derivatives.choice import (
    CALLED,
    DOES,
    candidates,
    first_line,
    first_that_works,
    is_refusal,
    warn_of_change,
)
from curvop.derivatives.columns import (
    ChunkSize,
    at,
    check_chunk_size,
    chunks,
    leading,
    sized,
    trailing,
)
from curvop.derivatives.composed import vectorised, with_kernels_of
from curvop.derivatives.differences import Differences, InaccurateError
from curvop.derivatives.differentiation import (
    Aux,
    Cotangents,
    Differentiable,
    Differentiation,
    Middle,
    Outputs,
    RiskDifferentiation,
    Way,
    WrongDerivativeError,
    apply_each,
    gather,
    only_tensor,
)
from curvop.derivatives.double_backward import DoubleBackward
from curvop.derivatives.torch_func import hessian_map

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
    "Middle",
    "Outputs",
    "RiskDifferentiation",
    "Way",
    "WrongDerivativeError",
    "apply_each",
    "at",
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
    "trailing",
    "vectorised",
    "warn_of_change",
    "with_kernels_of",
]
