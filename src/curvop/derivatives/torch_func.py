"""torch.func: forward mode for Jacobians, all columns of a chunk at once by vmap."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.func import grad, jvp, vjp, vmap

from curvop.autograd import column_vjp
from curvop.derivatives.columns import ChunkSize, chunks, gather, some_columns
from curvop.derivatives.differentiation import (
    Aux,
    Cotangents,
    Differentiable,
    Differentiation,
    Middle,
    only_tensor,
)
from curvop.layers import Calls, Duals
from curvop.operators import Blocks
from curvop.risk import TURN, Parameters, constant, preserved

# The first use of forward mode compiles torch's own rules, which warns of deprecations
# inside torch: let that happen here, so that no user sees them.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    jvp(torch.sin, (torch.zeros(()),), (torch.zeros(()),))


@final
@dataclass(frozen=True)
class TorchFunc(Differentiation):
    """Products by ``torch.func``; needs a model that is a function of its parameters.

    Attributes:
        is_vectorised: Whether a single column goes through ``vmap``, too.
    """

    is_vectorised: bool = False
    name: ClassVar[str] = "torch.func"

    def hessian(
        self, f: Differentiable, at: Parameters, V: Blocks, chunk: ChunkSize
    ) -> tuple[Blocks, Aux]:
        """Reverse over reverse, one gradient graph for all columns.

        jvp(jacrev) and vmap(jvp(grad)) would be wrong through LayerNorm, BatchNorm and
        InstanceNorm: vmap decomposes their backward with the statistics as constants
        (pytorch/functorch#534). vmap(vjp(grad)) is right.
        """
        if V[0].shape[0] == 1 and not self.is_vectorised:
            return _hessian_of_one(f, at, V)

        with torch.no_grad():
            multiply, aux = hessian_map(f, _values(at))
            return self._by_chunks(multiply, V, chunk), aux

    def sandwich(
        self,
        f: Differentiable,
        at: Parameters,
        V: Blocks,
        middle: Middle,
        chunk: ChunkSize,
    ) -> tuple[Blocks, Aux]:
        """One reverse graph for all columns, and a dual forward pass for each chunk."""
        if V[0].shape[0] == 1 and not self.is_vectorised:
            return _sandwich_of_one(f, at, V, middle)
        K, params = V[0].shape[0], _values(at)
        tally: list[Aux] = []

        def jvp_fn(*v: Tensor) -> Any:
            with TURN:
                return jvp(lambda *p: f(p)[0], params, v)[1]

        def some(columns: slice) -> Blocks:
            # the same dropout as in the reverse graph; the last one moves generators on
            with preserved(at.device) if columns.stop < K else nullcontext():
                U = self._map(jvp_fn, some_columns(V, columns), chunk)
            W, aux = middle(outputs, U)
            tally.append(aux)
            return self._map(lambda *w: vjp_fn(w), W, chunk)

        with torch.no_grad():
            with preserved(at.device):
                outputs, vjp_fn, on_the_way = vjp(  # type: ignore[misc]
                    lambda *p: f(p), *params, has_aux=True
                )
            product = gather((some(columns) for columns in chunks(K, chunk)), K)
            return product, (*on_the_way, *tally[-1])

    def jvp(self, f: Differentiable, at: Parameters, V: Blocks, chunk: ChunkSize) -> Blocks:
        """Forward mode."""
        with torch.no_grad():
            params = _values(at)

            def jvp_fn(*v: Tensor) -> Any:
                with TURN:
                    return jvp(lambda *p: f(p)[0], params, v)[1]

            return self._by_chunks(jvp_fn, V, chunk)

    def vjp(
        self, f: Differentiable, at: Parameters, U: Cotangents, chunk: ChunkSize
    ) -> Blocks:
        """Reverse mode on one graph."""
        with torch.no_grad():
            outputs, vjp_fn = vjp(  # type: ignore[misc]
                lambda *p: f(p)[0], *_values(at)
            )
            return self._by_chunks(lambda *u: vjp_fn(u), U(outputs), chunk)

    def _by_chunks(self, fn: Callable[..., Any], V: Blocks, chunk: ChunkSize) -> Blocks:
        K = V[0].shape[0]
        return gather(
            (self._map(fn, some_columns(V, c), chunk) for c in chunks(K, chunk)), K
        )

    def _map(self, fn: Callable[..., Any], V: Blocks, chunk: ChunkSize) -> Blocks:
        """``fn`` of each column; vmap only pays for more than one."""
        if V[0].shape[0] == 1 and not (self.is_vectorised and chunk != 1):
            return [out[None] for out in fn(*(v[0] for v in V))]
        return list(vmap(fn, randomness="same")(*V))


def hessian_map(
    f: Differentiable, params: Sequence[Tensor]
) -> tuple[Callable[..., Any], Aux]:
    """``(*v) -> ∇²f v`` for a scalar ``f``, by reverse over reverse mode."""

    def scalar(*p: Tensor) -> tuple[Tensor, Aux]:
        outputs, aux = f(p)
        return only_tensor(outputs), aux

    gradient = grad(scalar, argnums=tuple(range(len(params))), has_aux=True)
    _, vjp_fn, aux = vjp(gradient, *params, has_aux=True)  # type: ignore[misc]
    return lambda *v: vjp_fn(v), aux


def _hessian_of_one(f: Differentiable, at: Parameters, v: Blocks) -> tuple[Blocks, Aux]:
    """One column needs no vmap: plain autograd, without functorch's overhead."""
    with torch.enable_grad(), at.leaves() as params:
        with Calls(params) as calls:
            outputs, aux = f(params)
        return calls.hessian(only_tensor(outputs), v), aux


def _sandwich_of_one(
    f: Differentiable, at: Parameters, v: Blocks, middle: Middle
) -> tuple[Blocks, Aux]:
    """One column: dual numbers forward, plain autograd backward."""
    with TURN, forward_ad.dual_level(), torch.enable_grad(), at.leaves() as params:
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
        return column_vjp(primals, params, W, keep=False), (*on_the_way, *aux)


def _values(at: Parameters) -> tuple[Tensor, ...]:
    return tuple(constant(p) for p in at.tensors)
