"""Curvature of one scalar function of a list of tensors."""

from curvop.functional.finite_differences import approximate_hvp
from curvop.functional.gauss_newton import gauss_newton_product
from curvop.functional.hvp import exact_hvp, model_hvp
from curvop.functional.row_sum import hessian_row_sum
from curvop.functional.trace import hessian_trace

__all__ = [
    "approximate_hvp",
    "exact_hvp",
    "gauss_newton_product",
    "hessian_row_sum",
    "hessian_trace",
    "model_hvp",
]
