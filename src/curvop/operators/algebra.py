"""Sums, multiples, products and transposes of operators."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from curvop.operators.base import LinearOperator
from curvop.operators.layout import Blocks, Space


def merge(a: Space, b: Space, what: str) -> Space:
    """One space for two that must be equal; block structure and names survive.

    A flat space ``[N]`` (a dense matrix, say) fits every space with ``N`` entries: the
    one with more structure is kept.

    Raises:
        ValueError: If the spaces differ.
    """
    if a.shapes == b.shapes:
        return Space(a.shapes, a.names if a.names == b.names else a.names or b.names)
    if a.dim == b.dim and (_is_flat(a) or _is_flat(b)):
        return b if _is_flat(a) else a
    raise ValueError(
        f"Expected operators with the same {what}, got blocks "
        f"{[tuple(s) for s in a.shapes]} and {[tuple(s) for s in b.shapes]}."
    )


def _is_flat(space: Space) -> bool:
    return len(space.shapes) == 1 and len(space.shapes[0]) == 1


def reshape(M: Blocks, space: Space) -> Blocks:
    """View blocks over one space as blocks over another with as many entries."""
    if [b.shape[:-1] for b in M] == list(space.shapes):
        return M
    K = M[0].shape[-1]
    flat = torch.cat([b.reshape(-1, K) for b in M])
    return [
        b.reshape(*shape, K)
        for b, shape in zip(flat.split(space.sizes), space.shapes, strict=True)
    ]


def check_match(A: LinearOperator, B: LinearOperator) -> None:
    """Refuse operators of different dtypes or devices.

    Raises:
        TypeError: If the dtypes differ.
        ValueError: If the devices do.
    """
    if A.dtype != B.dtype:
        raise TypeError(
            f"Expected operators of one dtype, got {A.dtype} and {B.dtype}. Convert the "
            "model or matrix of one of them."
        )
    if A.device != B.device:
        raise ValueError(
            f"Expected operators on one device, got {A.device} and {B.device}."
        )


class SumLinearOperator(LinearOperator):
    """``A + B``."""

    def __init__(self, A: LinearOperator, B: LinearOperator) -> None:
        check_match(A, B)
        super().__init__(
            merge(A._domain, B._domain, "domain"),
            merge(A._codomain, B._codomain, "codomain"),
            dtype=A.dtype,
            device=A.device,
            symmetric=A.symmetric and B.symmetric,
            psd=A.psd and B.psd,
        )
        self._terms = (A, B)

    def _matmat(self, M: Blocks) -> Blocks:
        AM, BM = (
            reshape(A._matmat(reshape(M, A._domain)), self._codomain) for A in self._terms
        )
        return [a + b for a, b in zip(AM, BM, strict=True)]

    def _transpose(self) -> LinearOperator:
        A, B = self._terms
        return SumLinearOperator(A.T, B.T)


class ScaledLinearOperator(LinearOperator):
    """``c * A`` for a real number ``c``."""

    def __init__(self, A: LinearOperator, c: float) -> None:
        super().__init__(
            A._domain,
            A._codomain,
            dtype=A.dtype,
            device=A.device,
            symmetric=A.symmetric,
            psd=A.psd and c >= 0,
        )
        self._A = A
        self._c = c

    def _matmat(self, M: Blocks) -> Blocks:
        return [self._c * b for b in self._A._matmat(M)]

    def _transpose(self) -> LinearOperator:
        return ScaledLinearOperator(self._A.T, self._c)


class ProductLinearOperator(LinearOperator):
    """``A₁ A₂ ⋯ Aₙ``, applied from the right.

    A product that reads the same transposed from right to left is symmetric;
    ``Vᵀ B V`` is positive semi-definite when ``B`` is, or when it is missing.
    """

    def __init__(self, *factors: LinearOperator) -> None:
        for A, B in pairwise(factors):
            check_match(A, B)
            if A.shape[1] != B.shape[0]:
                raise ValueError(f"Expected shapes that chain, got {A.shape} @ {B.shape}.")
            merge(A._domain, B._codomain, "inner space")
        first, last = factors[0], factors[-1]
        n = len(factors)
        palindrome = all(
            are_transposed(factors[i], factors[n - 1 - i]) for i in range((n + 1) // 2)
        )
        middle = factors[n // 2] if n % 2 else None
        super().__init__(
            last._domain,
            first._codomain,
            dtype=first.dtype,
            device=first.device,
            symmetric=palindrome,
            psd=palindrome and (middle is None or middle.psd),
        )
        self._factors = factors

    def _matmat(self, M: Blocks) -> Blocks:
        for A in reversed(self._factors):
            M = A._matmat(reshape(M, A._domain))
        return M

    def _transpose(self) -> LinearOperator:
        return ProductLinearOperator(*(A.T for A in reversed(self._factors)))


class TransposedLinearOperator(LinearOperator):
    """``Aᵀ`` of an operator that can also multiply with its transpose."""

    def __init__(self, A: LinearOperator, rmatmat: Callable[[Blocks], Blocks]) -> None:
        super().__init__(A._codomain, A._domain, dtype=A.dtype, device=A.device)
        self._A = A
        self._rmatmat = rmatmat

    def _matmat(self, M: Blocks) -> Blocks:
        return self._rmatmat(M)

    def _transpose(self) -> LinearOperator:
        return self._A


def are_transposed(A: LinearOperator, B: LinearOperator) -> bool:
    """Whether ``B`` is known to be ``Aᵀ``: by identity, not by value."""
    if A is B:
        return A.symmetric
    if isinstance(A, TransposedLinearOperator):
        return A._A is B
    if isinstance(B, TransposedLinearOperator):
        return B._A is A
    return False


def remembered(A: LinearOperator, AT: LinearOperator) -> LinearOperator:
    """``Aᵀ`` that knows whose transpose it is, so that ``Aᵀ A`` is seen to be psd.

    A product is left as it is: its factors remember.
    """
    if are_transposed(A, AT) or isinstance(AT, ProductLinearOperator):
        return AT
    return TransposedLinearOperator(A, AT._matmat)


def total(A: LinearOperator, B: Any, sign: float = 1.0) -> LinearOperator:
    """``A + sign * B`` for whatever :func:`as_operator` understands."""
    from curvop.operators.interop import as_operator

    if isinstance(B, numbers.Number) or (isinstance(B, Tensor) and B.ndim == 0):
        raise TypeError(
            "Expected an operator or a matrix, got a number. For damping write "
            "A + c * IdentityLinearOperator.like(A)."
        )
    B = as_operator(B)
    return SumLinearOperator(A, B if sign == 1.0 else scaled(B, sign))


def product(A: LinearOperator, B: LinearOperator) -> LinearOperator:
    """``A @ B`` with nested products flattened."""
    left = A._factors if isinstance(A, ProductLinearOperator) else (A,)
    right = B._factors if isinstance(B, ProductLinearOperator) else (B,)
    return ProductLinearOperator(*left, *right)


def scaled(A: LinearOperator, c: Any) -> LinearOperator:
    """``c * A``, with nested multiples folded."""
    c = as_scalar(c)
    if isinstance(A, ScaledLinearOperator):
        return ScaledLinearOperator(A._A, A._c * c)
    return ScaledLinearOperator(A, c)


def as_scalar(c: Any) -> float:
    """A finite real number from a number or a 0-dimensional array or tensor.

    Raises:
        TypeError: If ``c`` is not a real number.
        ValueError: If it is infinite or NaN.
    """
    if getattr(c, "ndim", None) == 0 and hasattr(c, "item"):
        c = c.item()
    if not isinstance(c, numbers.Real):
        raise TypeError(
            f"Expected a real number as factor, got {type(c).__name__}. Multiply "
            "operators with @."
        )
    if not math.isfinite(c):
        raise ValueError(f"Expected a finite factor, got {c}.")
    return float(c)
