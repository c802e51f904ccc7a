"""BackPACK's Hessian-free products: double backward over one graph, any op, any callable.

Columns are looped over: the products cannot run under vmap.
"""

from __future__ import annotations

import torch
from backpack.hessianfree.lop import transposed_jacobian_vector_product
from backpack.hessianfree.rop import jacobian_vector_product
from torch import Tensor

from curvop.curvature.columns import ChunkSize
from curvop.curvature.differentiation import (
    Aux,
    Cotangents,
    Differentiable,
    Middle,
    apply_each,
    only_tensor,
)
from curvop.curvature.parameters import Parameters
from curvop.operators.layout import Blocks


class DoubleBackward:
    """Products by plain autograd, as BackPACK composes them."""

    name = "backpack"

    def hessian(
        self, f: Differentiable, at: Parameters, V: Blocks, chunk: ChunkSize
    ) -> tuple[Blocks, Aux]:
        """``∇²f v = Jᵀ v`` with the Jacobian ``J`` of the gradient: it is symmetric."""
        with torch.enable_grad(), at.leaves() as params:
            outputs, aux = f(params)
            gradient = torch.autograd.grad(
                only_tensor(_in_graph(outputs)),
                params,
                create_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
            return apply_each(lambda v: _pull(gradient, params, v), V), aux

    def sandwich(
        self,
        f: Differentiable,
        at: Parameters,
        V: Blocks,
        middle: Middle,
        chunk: ChunkSize,
    ) -> tuple[Blocks, Aux]:
        """``J`` by the R-operator, ``Jᵀ`` by reverse mode, both on one graph."""
        with torch.enable_grad(), at.leaves() as params:
            outputs, on_the_way = f(params)
            outputs = _in_graph(outputs)
            U = apply_each(lambda v: _push(outputs, params, v), V)
            W, aux = middle(tuple(o.detach() for o in outputs), U)
            product = apply_each(lambda w: _pull(outputs, params, w), W)
            return product, (*on_the_way, *aux)

    def jvp(self, f: Differentiable, at: Parameters, V: Blocks, chunk: ChunkSize) -> Blocks:
        """``J`` by the R-operator."""
        with torch.enable_grad(), at.leaves() as params:
            outputs = _in_graph(f(params)[0])
            return apply_each(lambda v: _push(outputs, params, v), V)

    def vjp(
        self, f: Differentiable, at: Parameters, U: Cotangents, chunk: ChunkSize
    ) -> Blocks:
        """``Jᵀ`` by reverse mode."""
        with torch.enable_grad(), at.leaves() as params:
            outputs = _in_graph(f(params)[0])
            return apply_each(lambda u: _pull(outputs, params, u), U(outputs))


def _in_graph(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The outputs, provided that they depend on some parameter.

    Raises:
        ValueError: If autograd sees no dependence at all.
    """
    if not any(o.requires_grad for o in outputs):
        raise ValueError(
            "The model uses none of the given parameters (or detaches its prediction): "
            "nothing to differentiate. Pass the tensors that the model is computed from."
        )
    return outputs


def _pull(outputs: tuple[Tensor, ...], params: tuple[Tensor, ...], U: Blocks) -> Blocks:
    """``Jᵀ u`` for one column; what depends on no parameter contributes nothing."""
    used = [(o, u[0]) for o, u in zip(outputs, U, strict=True) if o.requires_grad]
    if not used:
        return [torch.zeros_like(p)[None] for p in params]
    outs, us = (list(part) for part in zip(*used, strict=True))
    return [g[None] for g in transposed_jacobian_vector_product(outs, params, us)]


def _push(outputs: tuple[Tensor, ...], params: tuple[Tensor, ...], V: Blocks) -> Blocks:
    """``J v`` for one column."""
    used = tuple(o for o in outputs if o.requires_grad)
    pushed = iter(jacobian_vector_product(used, params, tuple(v[0] for v in V)))
    return [
        next(pushed)[None] if o.requires_grad else torch.zeros_like(o)[None]
        for o in outputs
    ]
