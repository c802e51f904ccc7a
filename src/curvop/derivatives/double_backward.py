"""Hessian-free products: double backward over one graph, any op, any callable.

BackPACK's R-operator gives ``J v``. Its other products keep a graph that is not
differentiated again, so autograd is called directly for those. Columns are looped over: the
R-operator cannot run under vmap.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import final

import torch
from backpack.hessianfree.rop import jacobian_vector_product
from torch import Tensor

from curvop.autograd import column_vjp, gradient
from curvop.derivatives.columns import ChunkSize, apply_each
from curvop.derivatives.differentiation import (
    Aux,
    Differentiable,
    Linearization,
    OnOneGraph,
    Outputs,
    only_tensor,
)
from curvop.operators import Blocks
from curvop.risk import Parameters, in_graph


@final
class DoubleBackward(OnOneGraph):
    """Products by plain autograd, as BackPACK composes them."""

    name = "backpack"

    def hessian(
        self, f: Differentiable, at: Parameters, V: Blocks, chunk: ChunkSize
    ) -> tuple[Blocks, Aux]:
        """``∇²f v = Jᵀ v`` with the Jacobian ``J`` of the gradient: it is symmetric."""
        with torch.enable_grad(), at.leaves() as params:
            outputs, aux = f(params)
            g = gradient(only_tensor(in_graph(outputs, at)), params)
            return apply_each(lambda v: column_vjp(g, params, v), V), aux

    @contextmanager
    def linear(self, f: Differentiable, at: Parameters) -> Iterator[Linearization]:
        """``J`` by the R-operator, ``Jᵀ`` by reverse mode."""
        with torch.enable_grad(), at.leaves() as params:
            outputs, aux = f(params)
            outputs = in_graph(outputs, at)
            yield Linearization(
                outputs,
                aux,
                jvp=lambda V: apply_each(lambda v: _jvp(outputs, params, v), V),
                vjp=lambda U: apply_each(lambda u: column_vjp(outputs, params, u), U),
            )


def _jvp(outputs: Outputs, params: tuple[Tensor, ...], V: Blocks) -> Blocks:
    """``J v`` for one column; zero for a constant output."""
    moving = tuple(o for o in outputs if o.requires_grad)
    v = tuple(column[0] for column in V)
    moved = iter(jacobian_vector_product(moving, params, v) if moving else ())
    return [
        next(moved)[None] if o.requires_grad else torch.zeros_like(o)[None] for o in outputs
    ]
