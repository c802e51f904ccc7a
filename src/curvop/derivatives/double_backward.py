"""Hessian-free products: double backward over one graph, any op, any callable.

BackPACK's R-operator gives ``J v``. Its other products keep a graph that is not
differentiated again, so autograd is called directly for those. Columns are looped over: the
R-operator cannot run under vmap.
"""

from __future__ import annotations

import torch
from backpack.hessianfree.rop import jacobian_vector_product
from torch import Tensor

from curvop.autograd import gradient, pull
from curvop.derivatives.columns import ChunkSize
from curvop.derivatives.differentiation import (
    Aux,
    Cotangents,
    Differentiable,
    Middle,
    Outputs,
    apply_each,
    only_tensor,
)
from curvop.operators import Blocks
from curvop.risk import Parameters, in_graph


class DoubleBackward:
    """Products by plain autograd, as BackPACK composes them."""

    name = "backpack"

    def hessian(
        self, f: Differentiable, at: Parameters, V: Blocks, chunk: ChunkSize
    ) -> tuple[Blocks, Aux]:
        """``∇²f v = Jᵀ v`` with the Jacobian ``J`` of the gradient: it is symmetric."""
        with torch.enable_grad(), at.leaves() as params:
            outputs, aux = f(params)
            g = gradient(only_tensor(in_graph(outputs, at)), params)
            return apply_each(lambda v: pull(g, params, v), V), aux

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
            outputs = in_graph(outputs, at)
            U = apply_each(lambda v: _push(outputs, params, v), V)
            W, aux = middle(tuple(o.detach() for o in outputs), U)
            product = apply_each(lambda w: pull(outputs, params, w), W)
            return product, (*on_the_way, *aux)

    def jvp(self, f: Differentiable, at: Parameters, V: Blocks, chunk: ChunkSize) -> Blocks:
        """``J`` by the R-operator."""
        with torch.enable_grad(), at.leaves() as params:
            outputs = in_graph(f(params)[0], at)
            return apply_each(lambda v: _push(outputs, params, v), V)

    def vjp(
        self, f: Differentiable, at: Parameters, U: Cotangents, chunk: ChunkSize
    ) -> Blocks:
        """``Jᵀ`` by reverse mode."""
        with torch.enable_grad(), at.leaves() as params:
            outputs = in_graph(f(params)[0], at)
            return apply_each(lambda u: pull(outputs, params, u), U(outputs))


def _push(outputs: Outputs, params: tuple[Tensor, ...], V: Blocks) -> Blocks:
    """``J v`` for one column; zero for a constant output."""
    moving = tuple(o for o in outputs if o.requires_grad)
    v = tuple(column[0] for column in V)
    pushed = iter(jacobian_vector_product(moving, params, v) if moving else ())
    return [
        next(pushed)[None] if o.requires_grad else torch.zeros_like(o)[None]
        for o in outputs
    ]
