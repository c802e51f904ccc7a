"""Helpers for torch's autograd: its graph, and kernels with correct derivatives."""

from curvop.autograd.composed_kernels import ComposedKernels
from curvop.autograd.composed_losses import composed
from curvop.autograd.graph import column_vjp, depends, gradient, graph_vjp, leaves_of
from curvop.autograd.kernels import differentiable_kernels, kernels_for, within

__all__ = [
    "ComposedKernels",
    "column_vjp",
    "composed",
    "depends",
    "differentiable_kernels",
    "gradient",
    "graph_vjp",
    "kernels_for",
    "leaves_of",
    "within",
]
