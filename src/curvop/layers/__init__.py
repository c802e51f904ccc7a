"""The place that knows layers: their calls in a forward pass, inputs and gradients."""

from curvop.layers.calls import Call, Calls, Duals, detached_from_base

__all__ = [
    "Call",
    "Calls",
    "Duals",
    "detached_from_base",
]
