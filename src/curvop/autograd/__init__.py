"""Helpers for torch's autograd: its graph, and kernels with correct derivatives."""

from curvop.autograd.composed_kernels import ComposedKernels
from curvop.autograd.composed_losses import composed
from curvop.autograd.graph import depends, gradient, leaves_of, pull, pullback
from curvop.autograd.kernels import differentiable_kernels, kernels_for, within

__all__ = [
    "ComposedKernels",
    "composed",
    "depends",
    "differentiable_kernels",
    "gradient",
    "kernels_for",
    "leaves_of",
    "pull",
    "pullback",
    "within",
]
