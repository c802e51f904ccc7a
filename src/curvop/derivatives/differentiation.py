"""What a way to differentiate is: the products that each of them has."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol

from torch import Tensor

from curvop.derivatives.columns import Apply, ChunkSize
from curvop.operators import Blocks
from curvop.risk import Parameters

Outputs = tuple[Tensor, ...]
Aux = tuple[Tensor, ...]
Differentiable = Callable[[Sequence[Tensor]], tuple[Outputs, Aux]]
Middle = Callable[[Outputs, Blocks], tuple[Blocks, Aux]]
Cotangents = Callable[[Outputs], Blocks]
Way = Literal["auto", "func", "backpack", "differences"]


class WrongDerivativeError(RuntimeError):
    """No way to differentiate a model gives the right derivatives."""


class RiskDifferentiation(Protocol):
    """Products with second derivatives of ``f(θ) -> (outputs, aux)`` at the parameters.

    ``V`` are blocks ``[K, *n_i]`` over the parameters, ``U`` blocks ``[K, *m_i]`` over
    the outputs. ``aux`` are tensors that ``f`` returns besides.
    """

    @property
    def name(self) -> str:
        """Its name in messages."""

    def hessian(
        self, f: Differentiable, at: Parameters, V: Blocks, chunk: ChunkSize
    ) -> tuple[Blocks, Aux]:
        """``∇²f V`` for a scalar ``f``."""

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


class Differentiation(RiskDifferentiation, Protocol):
    """Products with Jacobians, too."""

    def jvp(self, f: Differentiable, at: Parameters, V: Blocks, chunk: ChunkSize) -> Blocks:
        """``J V``, blocks ``[K, *m_i]``."""

    def vjp(
        self, f: Differentiable, at: Parameters, U: Cotangents, chunk: ChunkSize
    ) -> Blocks:
        """``Jᵀ U``, blocks ``[K, *n_i]``, for ``U`` that may depend on the outputs."""


def gather(parts: Iterable[Blocks], K: int) -> Blocks:
    """Chunks of columns written one by one into blocks of ``K`` columns."""
    out: Blocks = []
    k = 0
    for part in parts:
        n = part[0].shape[0]
        if n == K:
            return list(part)
        out = out or [b.new_empty(K, *b.shape[1:]) for b in part]
        for whole, b in zip(out, part, strict=True):
            whole[k : k + n] = b
        k += n
    return out


def apply_each(apply: Apply, V: Blocks) -> Blocks:
    """Apply a function of one column ``[1, *n_i]`` to each of ``K`` columns."""
    K = V[0].shape[0]
    return gather((apply([v[k : k + 1] for v in V]) for k in range(K)), K)


def only_tensor(outputs: Any) -> Tensor:
    """The one tensor of a scalar function's outputs."""
    (output,) = outputs
    assert isinstance(output, Tensor)
    return output
