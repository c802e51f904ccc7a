"""Plain autograd on a graph that is kept: one column at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from curvop.curvature import nested
from curvop.curvature.parameters import Parameters
from curvop.operators.layout import Blocks

Tensors = tuple[Tensor, ...]


def in_graph(outputs: Tensors, at: Parameters) -> Tensors:
    """The outputs of a closure, provided that they depend on some parameter.

    Parameters of a module are known to belong to it; if it does not use them, the matrix
    is zero.

    Raises:
        ValueError: If a closure does not use the tensors that it was given with.
    """
    if not at.functional and not any(o.requires_grad for o in outputs):
        raise ValueError(UNUSED)
    return outputs


UNUSED = (
    "The model uses none of the given parameters (or detaches its prediction): nothing to "
    "differentiate. Pass the tensors that the model is computed from."
)


def check_used(prediction: Any, at: Parameters) -> None:
    """Refuse tensors that a closure does not compute its prediction from.

    Costs a backward pass: meant for when a product is zero.

    Raises:
        ValueError: If there are no others.
    """
    outputs = [o for o in nested.differentiable(prediction) if o.requires_grad]
    slopes = torch.autograd.grad(
        outputs, at.tensors, [torch.ones_like(o) for o in outputs], allow_unused=True
    )
    if all(slope is None for slope in slopes):
        raise ValueError(UNUSED)


def gradient(output: Tensor, params: Tensors) -> Tensors:
    """The gradient as a graph, to be differentiated again; zero where unused."""
    if not output.requires_grad:
        return tuple(torch.zeros_like(p) for p in params)
    return torch.autograd.grad(
        output, params, create_graph=True, allow_unused=True, materialize_grads=True
    )


def pull(outputs: Tensors, params: Tensors, U: Blocks, *, keep: bool = True) -> Blocks:
    """``Jᵀ u`` for one column ``[1, *m_i]``; what depends on nothing adds nothing.

    Args:
        outputs: Tensors in a graph.
        params: Tensors that the graph starts from.
        U: Cotangents.
        keep: Whether the graph serves further columns.
    """
    used = [(o, u[0]) for o, u in zip(outputs, U, strict=True) if o.requires_grad]
    if not used:
        return [torch.zeros_like(p)[None] for p in params]
    outs, us = zip(*used, strict=True)
    grads = torch.autograd.grad(
        outs, params, us, retain_graph=keep, allow_unused=True, materialize_grads=True
    )
    return [g[None] for g in grads]
