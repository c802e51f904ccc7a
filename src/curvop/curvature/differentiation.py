"""Two ways to differentiate, with one signature, and the choice between them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol, TypeVar

from torch import Tensor

from curvop.curvature.columns import Apply, ChunkSize
from curvop.curvature.parameters import Parameters
from curvop.operators.layout import Blocks

Outputs = tuple[Tensor, ...]
Aux = tuple[Tensor, ...]
Differentiable = Callable[[Sequence[Tensor]], tuple[Outputs, Aux]]
Middle = Callable[[Outputs, Blocks], tuple[Blocks, Aux]]
Cotangents = Callable[[Outputs], Blocks]
Result = TypeVar("Result")
Way = Literal["auto", "func", "backpack"]


class RiskDifferentiation(Protocol):
    """Products with second derivatives of ``f(θ) -> (outputs, aux)`` at the parameters.

    ``V`` are blocks ``[K, *n_i]`` over the parameters, ``U`` blocks ``[K, *m_i]`` over
    the outputs. ``aux`` is data that ``f`` computes on the way.
    """

    name: str

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

        ``middle`` is ``(outputs, U) -> (B U, aux)`` for a symmetric ``B``. What ``f``
        and ``middle`` compute on the way is returned together.
        """


class Differentiation(RiskDifferentiation, Protocol):
    """Products with Jacobians, too."""

    def jvp(self, f: Differentiable, at: Parameters, V: Blocks, chunk: ChunkSize) -> Blocks:
        """``J V``, blocks ``[K, *m_i]``."""

    def vjp(
        self, f: Differentiable, at: Parameters, U: Cotangents, chunk: ChunkSize
    ) -> Blocks:
        """``Jᵀ U``, blocks ``[K, *n_i]``, for ``U`` that may depend on the outputs."""


AnyWay = TypeVar("AnyWay", bound=RiskDifferentiation)


def candidates(way: Way, at: Parameters) -> tuple[Differentiation, ...]:
    """What to try, in this order.

    Args:
        way: What the user wants.
        at: The parameters; a closure over them can only be differentiated in place.

    Raises:
        ValueError: If the way is unknown, or impossible for this model.
    """
    from curvop.curvature.double_backward import DoubleBackward
    from curvop.curvature.torch_func import TorchFunc

    if way not in ("auto", "func", "backpack"):
        raise ValueError(
            f"Expected differentiation 'auto', 'func' or 'backpack', got {way!r}."
        )
    if way == "func" and not at.functional:
        raise ValueError(
            "differentiation='func' needs a module, or a dict of parameters with a "
            "callable (params, X) -> prediction; got a closure over the parameters."
        )
    if way == "backpack" or not at.functional:
        return (DoubleBackward(),)
    return (TorchFunc(),) if way == "func" else (TorchFunc(), DoubleBackward())


def first_that_works(
    ways: tuple[AnyWay, ...], attempt: Callable[[AnyWay], Result]
) -> tuple[tuple[AnyWay, ...], Result]:
    """Try one way after the other, and warn where the first one does not do.

    Args:
        ways: What to try, in this order.
        attempt: What to do with each; its error counts as "not supported", unless it is
            the last way's.

    Returns:
        The ways that remain (those before the one that worked are dropped), and what
        the attempt returned.
    """
    first, *rest = ways
    try:
        return ways, attempt(first)
    except Exception as error:
        if not rest:
            raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    remaining, result = first_that_works(tuple(rest), attempt)
    warnings.warn(
        f"{first.name} does not support this model ({reason}). Using "
        f"{remaining[0].name} (double backward) instead; pass differentiation="
        f"{remaining[0].name!r} to choose it yourself.",
        stacklevel=2,
    )
    return remaining, result


def gather(parts: Iterable[Blocks], K: int) -> Blocks:
    """Chunks of columns put together, one at a time: ``K`` in all."""
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
