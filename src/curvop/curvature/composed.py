"""A way to differentiate with kernels that the library composes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar, final

from curvop.curvature.columns import ChunkSize
from curvop.curvature.composed_kernels import ComposedKernels
from curvop.curvature.differentiation import (
    Aux,
    Cotangents,
    Differentiable,
    Differentiation,
    Middle,
)
from curvop.curvature.parameters import Parameters
from curvop.curvature.torch_func import TorchFunc
from curvop.operators.layout import Blocks

if TYPE_CHECKING:
    from curvop.curvature.base import CurvatureLinearOperator
    from curvop.curvature.jacobian import JacobianLinearOperator

    AnyOperator = TypeVar("AnyOperator", CurvatureLinearOperator, JacobianLinearOperator)


Value = TypeVar("Value")


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
        return self.way.hessian(_composed(f), at, V, chunk)

    def sandwich(
        self,
        f: Differentiable,
        at: Parameters,
        V: Blocks,
        middle: Middle,
        chunk: ChunkSize,
    ) -> tuple[Blocks, Aux]:
        """``Jᵀ B J V``."""
        return self.way.sandwich(_composed(f), at, V, middle, chunk)

    def jvp(self, f: Differentiable, at: Parameters, V: Blocks, chunk: ChunkSize) -> Blocks:
        """``J V``."""
        return self.way.jvp(_composed(f), at, V, chunk)

    def vjp(
        self, f: Differentiable, at: Parameters, U: Cotangents, chunk: ChunkSize
    ) -> Blocks:
        """``Jᵀ U``."""
        return self.way.vjp(_composed(f), at, U, chunk)


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
    return op._with(_parameters=replace(at, model=_composed(at.model)))


def _composed(f: Callable[..., Value]) -> Callable[..., Value]:
    def g(*args: Any) -> Value:
        with ComposedKernels():
            return f(*args)

    return g
