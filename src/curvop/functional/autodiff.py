"""Values, gradients and pull-backs of a user's function by plain autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def evaluate(func: Callable[[], Any]) -> Tensor:
    """The value of a closure, checked to be a real scalar that can be differentiated.

    Raises:
        TypeError: If it is no real floating-point tensor.
        ValueError: If it is no finite scalar, or depends on no tensor.
    """
    value = scalar(func())
    if not value.requires_grad:
        # zeros would be right for a constant, and hide what is nearly always a mistake
        raise ValueError(
            "Expected func to return a tensor that depends on params, got one without a "
            "graph. Compute it inside func, without .detach(), .item() or no_grad."
        )
    return value


def scalar(value: Any) -> Tensor:
    """What a function returned, checked to be a real scalar.

    Raises:
        TypeError: If it is no real floating-point tensor.
        ValueError: If it is no finite scalar.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point():
        got = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"Expected a real floating-point tensor as the function's value, got {got}."
        )
    if value.numel() != 1:
        raise ValueError(
            f"Expected a scalar as the function's value, got shape {tuple(value.shape)}. "
            "Reduce it with .sum(), or a loss with reduction='mean' or 'sum'."
        )
    if not value.isfinite():
        raise ValueError(
            "Expected a finite value of the function, got "
            f"{float(value.detach())}. It has no derivatives there: look at the parameters "
            "and the data."
        )
    return value.reshape(())


def gradient(
    value: Tensor, params: Sequence[Tensor], *, create_graph: bool
) -> list[Tensor]:
    """Gradient of a scalar; zero where it depends on nothing."""
    one = torch.ones_like(value)
    return pull([value], params, [one], create_graph=create_graph, keep=create_graph)


def pull(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    *,
    create_graph: bool,
    keep: bool,
) -> list[Tensor]:
    """``Jᵀ u`` for outputs in a graph; what depends on nothing adds nothing.

    Args:
        outputs: Tensors in a graph.
        inputs: Tensors that the graph starts from.
        cotangents: ``u``, one for each output.
        create_graph: Whether the answer can be differentiated.
        keep: Whether the graph serves again; otherwise its memory is freed on the way.
    """
    used = [(o, u) for o, u in zip(outputs, cotangents, strict=True) if o.requires_grad]
    if not used:
        return [torch.zeros_like(p) for p in inputs]
    outs, us = zip(*used, strict=True)
    grads = torch.autograd.grad(
        outs,
        inputs,
        us,
        create_graph=create_graph,
        retain_graph=keep,
        allow_unused=True,
        materialize_grads=True,
    )
    return list(grads)
