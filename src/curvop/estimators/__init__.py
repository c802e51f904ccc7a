"""Numbers that sum up a matrix, estimated from its products, with error bars."""

from curvop.estimators.block_traces import block_traces
from curvop.estimators.diagonal import diagonal
from curvop.estimators.functions import effective_dimension, logdet, trace_function
from curvop.estimators.norm import frobenius_norm
from curvop.estimators.trace import trace

__all__ = [
    "block_traces",
    "diagonal",
    "effective_dimension",
    "frobenius_norm",
    "logdet",
    "trace",
    "trace_function",
]
