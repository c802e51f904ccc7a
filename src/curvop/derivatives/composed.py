"""A way to differentiate, with composed kernels in place of torch's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar, final

from curvop.autograd import ComposedKernels, within
from curvop.derivatives.columns import ChunkSize
from curvop.derivatives.differentiation import (
    Aux,
    Cotangents,
    Differentiable,
    Differentiation,
    Middle,
)
from curvop.derivatives.torch_func import TorchFunc
from curvop.operators import Blocks
from curvop.risk import Parameters, Predictions, Risk

Over = TypeVar("Over", Risk, Predictions)


@final
@dataclass(frozen=True)
class Composed(Differentiation):
    """Another way, with kernels composed where torch's have wrong derivatives or none.

    Attributes:
        way: How to differentiate.
    """

    way: Differentiation

    @property
    def name(self) -> str:
        """That of the way."""
        return self.way.name

    def hessian(
        self, f: Differentiable, at: Parameters, V: Blocks, chunk: ChunkSize
    ) -> tuple[Blocks, Aux]:
        """``∇²f V``."""
        return self.way.hessian(within(ComposedKernels, f), at, V, chunk)

    def sandwich(
        self,
        f: Differentiable,
        at: Parameters,
        V: Blocks,
        middle: Middle,
        chunk: ChunkSize,
    ) -> tuple[Blocks, Aux]:
        """``Jᵀ B J V``."""
        return self.way.sandwich(within(ComposedKernels, f), at, V, middle, chunk)

    def jvp(self, f: Differentiable, at: Parameters, V: Blocks, chunk: ChunkSize) -> Blocks:
        """``J V``."""
        return self.way.jvp(within(ComposedKernels, f), at, V, chunk)

    def vjp(
        self, f: Differentiable, at: Parameters, U: Cotangents, chunk: ChunkSize
    ) -> Blocks:
        """``Jᵀ U``."""
        return self.way.vjp(within(ComposedKernels, f), at, U, chunk)


def vectorised(way: Differentiation) -> Differentiation | None:
    """The way that takes one column through ``vmap``, too, as it does several."""
    if isinstance(way, TorchFunc):
        return TorchFunc(is_vectorised=True)
    inner = vectorised(way.way) if isinstance(way, Composed) else None
    return None if inner is None else Composed(inner)


def with_kernels_of(way: Differentiation, risk: Over) -> Over:
    """The model with the kernels of a way, for derivatives taken outside of it."""
    if not isinstance(way, Composed):
        return risk
    at = risk.parameters
    there = replace(at, model=within(ComposedKernels, at.model))
    return replace(risk, parameters=there)
