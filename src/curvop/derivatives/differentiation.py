"""What a way to differentiate is: products with derivatives of one function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from curvop.derivatives.columns import Apply, ChunkSize
from curvop.operators import Blocks
from curvop.risk import Parameters

Outputs = tuple[Tensor, ...]
Aux = tuple[Tensor, ...]
Differentiable = Callable[[Sequence[Tensor]], tuple[Outputs, Aux]]
Middle = Callable[[Outputs, Blocks], tuple[Blocks, Aux]]
Cotangents = Callable[[Outputs], Blocks]


class RiskDifferentiation(ABC):
    """Products with second derivatives of ``f(θ) -> (outputs, aux)`` at the parameters.

    ``V`` are blocks ``[K, *n_i]`` over the parameters, ``U`` blocks ``[K, *m_i]`` over
    the outputs. ``aux`` are tensors that ``f`` returns besides.
    """

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name in messages."""

    @abstractmethod
    def hessian(
        self, f: Differentiable, at: Parameters, V: Blocks, chunk: ChunkSize
    ) -> tuple[Blocks, Aux]:
        """``∇²f V`` for a scalar ``f``."""

    @abstractmethod
    def sandwich(
        self,
        f: Differentiable,
        at: Parameters,
        V: Blocks,
        middle: Middle,
        chunk: ChunkSize,
    ) -> tuple[Blocks, Aux]:
        """``Jᵀ B J V`` with the Jacobian ``J`` of ``f``.

        ``middle`` is ``(outputs, U) -> (B U, aux)`` for a symmetric ``B``. The ``aux`` of
        ``f`` and of ``middle`` are returned together.
        """


class Differentiation(RiskDifferentiation):
    """Products with Jacobians, too."""

    @abstractmethod
    def jvp(self, f: Differentiable, at: Parameters, V: Blocks, chunk: ChunkSize) -> Blocks:
        """``J V``, blocks ``[K, *m_i]``."""

    @abstractmethod
    def vjp(
        self, f: Differentiable, at: Parameters, U: Cotangents, chunk: ChunkSize
    ) -> Blocks:
        """``Jᵀ U``, blocks ``[K, *n_i]``, for ``U`` that may depend on the outputs."""


@dataclass(frozen=True)
class Linearization:
    """``f(θ + v) ≈ f(θ) + J v``.

    Attributes:
        outputs: ``f(θ)``.
        aux: What ``f`` computes on the way.
        jvp: ``J V``.
        vjp: ``Jᵀ U``.
    """

    outputs: Outputs
    aux: Aux
    jvp: Apply
    vjp: Apply


class OnOneGraph(Differentiation):
    """``J`` and ``Jᵀ`` on one graph, and all products with them."""

    @abstractmethod
    def linear(
        self, f: Differentiable, at: Parameters
    ) -> AbstractContextManager[Linearization]:
        """``f`` at the parameters, for the time of the context."""

    def sandwich(
        self,
        f: Differentiable,
        at: Parameters,
        V: Blocks,
        middle: Middle,
        chunk: ChunkSize,
    ) -> tuple[Blocks, Aux]:
        """``Jᵀ B J V``."""
        with self.linear(f, at) as near:
            W, aux = middle(tuple(o.detach() for o in near.outputs), near.jvp(V))
            return near.vjp(W), (*near.aux, *aux)

    def jvp(self, f: Differentiable, at: Parameters, V: Blocks, chunk: ChunkSize) -> Blocks:
        """``J V``."""
        with self.linear(f, at) as near:
            return near.jvp(V)

    def vjp(
        self, f: Differentiable, at: Parameters, U: Cotangents, chunk: ChunkSize
    ) -> Blocks:
        """``Jᵀ U``."""
        with self.linear(f, at) as near:
            return near.vjp(U(near.outputs))


def only_tensor(outputs: Any) -> Tensor:
    """The one tensor of a scalar function's outputs."""
    (output,) = outputs
    assert isinstance(output, Tensor)
    return output
