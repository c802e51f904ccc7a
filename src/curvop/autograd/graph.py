"""Gradients and vector-Jacobian products on a graph; zero where it has no path."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from curvop.operators import Blocks

Tensors = tuple[Tensor, ...]


def depends(outputs: Sequence[Tensor], params: Sequence[Tensor]) -> bool:
    """Whether some output depends on some parameter, by a backward pass."""
    found = [o for o in outputs if o.requires_grad]
    if not found:
        return False
    units = [torch.ones_like(o) for o in found]
    slopes = torch.autograd.grad(found, params, units, allow_unused=True)
    return any(slope is not None for slope in slopes)


def leaves_of(outputs: Sequence[Tensor]) -> list[Tensor]:
    """The leaves that a graph starts from."""
    found = [o for o in outputs if o.grad_fn is None and o.requires_grad]
    seen: set[Any] = set()
    reached = [o.grad_fn for o in outputs if o.grad_fn is not None]
    while reached:
        node = reached.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found.append(leaf)
        reached += [n for n, _ in node.next_functions if n is not None]
    return found


def gradient(
    output: Tensor, params: Sequence[Tensor], *, create_graph: bool = True
) -> list[Tensor]:
    """The gradient, by default differentiable; zero for unused parameters."""
    one = [torch.ones_like(output)]
    return graph_vjp([output], params, one, create_graph=create_graph, keep=create_graph)


def graph_vjp(
    outputs: Sequence[Tensor],
    inputs: Sequence[Tensor],
    cotangents: Sequence[Tensor],
    *,
    create_graph: bool,
    keep: bool,
) -> list[Tensor]:
    """``Jᵀ u`` for outputs in a graph; constant outputs add nothing.

    Args:
        outputs: Tensors in a graph.
        inputs: Tensors that the graph starts from.
        cotangents: ``u``, one for each output.
        create_graph: Whether the result can be differentiated.
        keep: Whether the graph is used again; otherwise its memory is freed.
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
    # of an embedding with sparse gradients, for instance
    return [g if g.layout is torch.strided else g.to_dense() for g in grads]


def column_vjp(
    outputs: Sequence[Tensor], params: Tensors, U: Blocks, *, keep: bool = True
) -> Blocks:
    """``Jᵀ u`` for one column ``[1, *m_i]``; by default the graph is kept."""
    u = [column[0] for column in U]
    grads = graph_vjp(outputs, params, u, create_graph=False, keep=keep)
    return [g[None] for g in grads]
