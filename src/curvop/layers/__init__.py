"""The place that knows layers: their calls in a forward pass, inputs and gradients."""

from curvop.layers.bilinear import Bilinear
from curvop.layers.call import Call, MatrixCall
from curvop.layers.calls import Calls, Duals
from curvop.layers.convolution import Convolution, TransposedConvolution, Window
from curvop.layers.embedding import Embedding
from curvop.layers.linear import Linear
from curvop.layers.norms import Norm

__all__ = [
    "Bilinear",
    "Call",
    "Calls",
    "Convolution",
    "Duals",
    "Embedding",
    "Linear",
    "MatrixCall",
    "Norm",
    "TransposedConvolution",
    "Window",
]
