"""torch.func: forward mode for Jacobians, all columns of a chunk at once by vmap."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jvp, vjp, vmap

from curvop.curvature.calls import Calls, Duals
from curvop.curvature.columns import ChunkSize, at, chunks
from curvop.curvature.differentiation import (
    Aux,
    Cotangents,
    Differentiable,
    Middle,
    concatenate,
    only_tensor,
)
from curvop.curvature.graph import pull
from curvop.curvature.parameters import Parameters, constant
from curvop.operators.layout import Blocks

# The first use of forward mode compiles torch's own rules, which warns of deprecations
# inside torch: let that happen here, so that no user sees them.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    jvp(torch.sin, (torch.zeros(()),), (torch.zeros(()),))


class TorchFunc:
    """Products by ``torch.func``; needs a model that is a function of its parameters."""

    name = "torch.func"

    def hessian(
        self, f: Differentiable, at_: Parameters, V: Blocks, chunk: ChunkSize
    ) -> tuple[Blocks, Aux]:
        """Reverse over reverse, one gradient graph for all columns.

        jvp(jacrev) and vmap(jvp(grad)) would be wrong through LayerNorm, BatchNorm and
        InstanceNorm: vmap decomposes their backward with the statistics as constants
        (pytorch/functorch#534). vmap(vjp(grad)) is right.
        """
        if V[0].shape[0] == 1:
            return _hessian_of_one(f, at_, V)

        with torch.no_grad():
            multiply, aux = hessian_map(f, _values(at_))
            return _by_chunks(multiply, V, chunk), aux

    def sandwich(
        self,
        f: Differentiable,
        at_: Parameters,
        V: Blocks,
        middle: Middle,
        chunk: ChunkSize,
    ) -> tuple[Blocks, Aux]:
        """One dual forward pass per chunk, which also records the reverse graph."""
        if V[0].shape[0] == 1:
            return _sandwich_of_one(f, at_, V, middle)
        parts: list[Blocks] = []
        with torch.no_grad():
            params = _values(at_)
            for columns in chunks(V[0].shape[0], chunk):
                v = at(V, columns)
                outputs, pull, (U, on_the_way) = vjp(  # type: ignore[misc]
                    lambda *p, v=v: _dual(f, p, v), *params, has_aux=True
                )
                W, aux = middle(outputs, list(U))
                parts.append(_map(lambda *w, pull=pull: pull(w), W))
        return concatenate(parts), (*on_the_way, *aux)

    def jvp(
        self, f: Differentiable, at_: Parameters, V: Blocks, chunk: ChunkSize
    ) -> Blocks:
        """Forward mode."""
        with torch.no_grad():
            params = _values(at_)

            def push(*v: Tensor) -> Any:
                return jvp(lambda *p: f(p)[0], params, v)[1]

            return _by_chunks(push, V, chunk)

    def vjp(
        self, f: Differentiable, at_: Parameters, U: Cotangents, chunk: ChunkSize
    ) -> Blocks:
        """Reverse mode on one graph."""
        with torch.no_grad():
            outputs, pull = vjp(  # type: ignore[misc]
                lambda *p: f(p)[0], *_values(at_)
            )
            return _by_chunks(lambda *u: pull(u), U(outputs), chunk)


def hessian_map(
    f: Differentiable, params: Sequence[Tensor]
) -> tuple[Callable[..., Any], Aux]:
    """``(*v) -> ∇²f v`` for a scalar ``f``, by reverse over reverse mode."""

    def scalar(*p: Tensor) -> tuple[Tensor, Aux]:
        outputs, aux = f(p)
        return only_tensor(outputs), aux

    gradient = grad(scalar, argnums=tuple(range(len(params))), has_aux=True)
    _, pull, aux = vjp(gradient, *params, has_aux=True)  # type: ignore[misc]
    return lambda *v: pull(v), aux


def _hessian_of_one(f: Differentiable, at_: Parameters, v: Blocks) -> tuple[Blocks, Aux]:
    """One column needs no vmap, hence none of functorch's layers: plain autograd."""
    with torch.enable_grad(), at_.leaves() as params:
        with Calls(params) as calls:
            outputs, aux = f(params)
        return calls.hessian(only_tensor(outputs), v), aux


def _sandwich_of_one(
    f: Differentiable, at_: Parameters, v: Blocks, middle: Middle
) -> tuple[Blocks, Aux]:
    """One column: dual numbers forward, plain autograd back."""
    with forward_ad.dual_level(), torch.enable_grad(), at_.leaves() as params:
        duals = [forward_ad.make_dual(p, t[0]) for p, t in zip(params, v, strict=True)]
        with Duals(duals, params, [t[0] for t in v]):
            outputs, on_the_way = f(duals)
        pairs = [forward_ad.unpack_dual(o) for o in outputs]
        primals = tuple(p.primal for p in pairs)
        U = [
            (torch.zeros_like(p.primal) if p.tangent is None else p.tangent.detach())[None]
            for p in pairs
        ]
        on_the_way = tuple(forward_ad.unpack_dual(a).primal.detach() for a in on_the_way)
    with torch.enable_grad():
        W, aux = middle(tuple(p.detach() for p in primals), U)
        return pull(primals, params, W, keep=False), (*on_the_way, *aux)


def _values(at_: Parameters) -> tuple[Tensor, ...]:
    return tuple(constant(p) for p in at_.tensors)


def _dual(f: Differentiable, p: tuple[Tensor, ...], V: Blocks) -> Any:
    """``f(p)`` and, not to be differentiated, ``J V`` ``[K, *m_i]`` and what f adds."""

    def push(*v: Tensor) -> Any:
        return jvp(lambda *q: f(q), p, v, has_aux=True)

    if V[0].shape[0] == 1:
        outputs, U, aux = push(*(v[0] for v in V))
        return outputs, (tuple(u[None] for u in U), aux)
    # the primal does not depend on v: it is computed once for all columns
    # "same": dropout is one mask for all columns, hence one matrix
    columns = vmap(push, out_dims=(None, 0, None), randomness="same")  # type: ignore[arg-type]
    outputs, U, aux = columns(*V)
    return outputs, (U, aux)


def _by_chunks(fn: Callable[..., Any], V: Blocks, chunk: ChunkSize) -> Blocks:
    return concatenate([_map(fn, at(V, c)) for c in chunks(V[0].shape[0], chunk)])


def _map(fn: Callable[..., Any], V: Blocks) -> Blocks:
    """``fn`` of each column; vmap only pays for more than one."""
    if V[0].shape[0] == 1:
        return [out[None] for out in fn(*(v[0] for v in V))]
    return list(vmap(fn, randomness="same")(*V))
