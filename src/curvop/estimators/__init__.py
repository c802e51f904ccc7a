"""Traces and other numbers of a matrix, estimated from products, with error bars."""

from curvop.estimators.diagonal import diagonal
from curvop.estimators.frobenius_norm import frobenius_norm
from curvop.estimators.functions import effective_dimension, logdet, trace_function
from curvop.estimators.moments import student_factor
from curvop.estimators.quadrature import gauss_radau, tridiagonals
from curvop.estimators.trace import block_traces, trace

__all__ = [
    "block_traces",
    "diagonal",
    "effective_dimension",
    "frobenius_norm",
    "gauss_radau",
    "logdet",
    "student_factor",
    "trace",
    "trace_function",
    "tridiagonals",
]
