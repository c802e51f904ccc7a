"""A way to differentiate with kernels that the library composes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

from curvop.curvature.columns import ChunkSize
from curvop.curvature.composed_kernels import ComposedKernels
from curvop.curvature.differentiation import (
    Aux,
    Cotangents,
    Differentiable,
    Differentiation,
    Middle,
)
from curvop.curvature.kernels import within
from curvop.curvature.parameters import Parameters
from curvop.curvature.torch_func import TorchFunc
from curvop.operators.layout import Blocks

if TYPE_CHECKING:
    from curvop.curvature.differentiation import AnyOperator


@final
@dataclass(frozen=True)
class Composed:
    """The same derivatives, of functions whose torch kernels have wrong ones or none.

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
    """The way with the path of several columns for one, if those take another."""
    if isinstance(way, TorchFunc):
        return TorchFunc(is_vectorised=True)
    inner = vectorised(way.way) if isinstance(way, Composed) else None
    return None if inner is None else Composed(inner)


def with_its_kernels(op: AnyOperator) -> AnyOperator:
    """The operator for derivatives by other hands: with the kernels of its own way."""
    if not isinstance(op._ways[0], Composed):
        return op
    at = op._parameters
    return op._with(_parameters=replace(at, model=within(ComposedKernels, at.model)))
