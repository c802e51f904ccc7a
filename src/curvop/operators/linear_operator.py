"""LinearOperator: a matrix known by its products, closed under algebra."""

from __future__ import annotations

import itertools
import math
import numbers
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import singledispatch
from itertools import pairwise
from typing import Any

import torch
from numpy.typing import DTypeLike
from torch import Size, Tensor

from curvop.operators.layout import (
    Blocks,
    Side,
    Space,
    Vector,
    admit,
    merge,
    read,
    reshape,
)
from curvop.operators.scipy_export import SciPyExport


class SingularSystemError(ArithmeticError):
    """The matrix is singular, exactly or to working precision."""


class LinearOperator(ABC):
    r"""A real matrix ``A`` of shape ``(M, N)`` that is known by its products.

    The input and output spaces are products of tensor shapes (*blocks*): the
    parameters of a network, say. ``A @ x`` takes

    - a tensor ``[N]`` or ``[N, K]``,
    - a list or tuple of blocks ``[*n_i]`` or ``[*n_i, K]``,
    - a dict from block names to blocks, where the blocks have names,
    - another operator,

    and answers in the same form. ``x @ A`` does the same from the left, with ``K``
    leading. Operators are values: nothing changes after ``__init__``.

    Subclasses implement :meth:`_matmat` and :meth:`_transpose`; they are final.

    Args:
        domain: Block space of the input.
        codomain: Block space of the output.
        dtype: Floating-point type of the matrix.
        device: Where the matrix lives.
        symmetric: Tag: ``A = Aᵀ`` is known to hold.
        psd: Tag: ``A`` is known to be symmetric positive semi-definite.

    Raises:
        TypeError: If ``dtype`` is not a real floating-point type.
        ValueError: If a space is empty, or a tag contradicts the shape.
    """

    # NumPy must leave `array @ operator` and `scalar * operator` to us.
    __array_ufunc__ = None

    def __init__(
        self,
        domain: Space,
        codomain: Space,
        *,
        dtype: torch.dtype,
        device: torch.device,
        symmetric: bool = False,
        psd: bool = False,
    ) -> None:
        if not dtype.is_floating_point:
            raise TypeError(
                f"Expected a real floating-point matrix, got {dtype}. Convert it, for "
                "instance with .double()."
            )
        for side, space in (("domain", domain), ("codomain", codomain)):
            if not space.shapes:
                raise ValueError(f"Expected a {side} of at least one block, got none.")
        if (symmetric or psd) and domain.shapes != codomain.shapes:
            raise ValueError(
                "A symmetric operator needs equal domain and codomain, got "
                f"{domain.shapes} and {codomain.shapes}."
            )
        self._domain = domain
        self._codomain = codomain
        self._dtype = dtype
        self._device = device
        self._symmetric = symmetric or psd
        self._psd = psd

    # ------------------------------------------------------------ what it is

    @property
    def input_space(self) -> Space:
        """Shapes and names of the input blocks."""
        return self._domain

    @property
    def output_space(self) -> Space:
        """Shapes and names of the output blocks."""
        return self._codomain

    @property
    def domain(self) -> tuple[Size, ...]:
        """Shapes of the input blocks."""
        return self._domain.shapes

    @property
    def codomain(self) -> tuple[Size, ...]:
        """Shapes of the output blocks."""
        return self._codomain.shapes

    @property
    def domain_names(self) -> tuple[str, ...] | None:
        """Names of the input blocks, if they have any."""
        return self._domain.names

    @property
    def codomain_names(self) -> tuple[str, ...] | None:
        """Names of the output blocks, if they have any."""
        return self._codomain.names

    @property
    def shape(self) -> tuple[int, int]:
        """``(M, N)``: entries of the flattened output and input."""
        return self._codomain.dim, self._domain.dim

    @property
    def ndim(self) -> int:
        """Always 2: a matrix."""
        return 2

    @property
    def dtype(self) -> torch.dtype:
        """Floating-point type of the matrix."""
        return self._dtype

    @property
    def device(self) -> torch.device:
        """Where the matrix lives."""
        return self._device

    @property
    def symmetric(self) -> bool:
        """Whether ``A = Aᵀ`` is known to hold."""
        return self._symmetric

    @property
    def psd(self) -> bool:
        """Whether ``A`` is known to be symmetric positive semi-definite."""
        return self._psd

    def __repr__(self) -> str:
        """One line: class, shape, type, device, tags."""
        tags = ", psd" if self.psd else ", symmetric" if self.symmetric else ""
        M, N = self.shape
        return f"<{M}x{N} {type(self).__name__}, {self.dtype}, {self.device}{tags}>"

    # ---------------------------------------------------- what subclasses do

    @abstractmethod
    def _matmat(self, M: Blocks) -> Blocks:
        """Multiply onto ``M``: ``[*n_i, K] -> [*m_i, K]``, of the operator's dtype."""

    @abstractmethod
    def _transpose(self) -> LinearOperator:
        """The transposed operator; called only where ``symmetric`` is not set."""

    @property
    def columns_at_once(self) -> int | None:
        """Width of a slice of a wide matrix; ``None`` where all at once save work."""
        return None

    # -------------------------------------------------------------- products

    def __matmul__(self, x: Any) -> Any:
        """``A @ x`` for a vector, matrix, blocks or operator ``x``."""
        if isinstance(x, LinearOperator):
            return ProductLinearOperator(*_factors(self), *_factors(x))
        return self._multiply(x, "right")

    def __rmatmul__(self, x: Any) -> Any:
        """``x @ A`` for a vector, matrix or blocks ``x``."""
        return self.T._multiply(x, "left")

    def _multiply(self, x: Vector, side: Side) -> Vector:
        slices = self._slices(x, side)
        if slices:
            return self._multiply_slices(slices, side)
        M, form = read(x, self._domain, side)
        M = [admit(b, self.dtype, self.device) for b in M]
        if M[0].shape[-1] == 0:
            out = [M[0].new_zeros(*shape, 0) for shape in self.codomain]
        elif any(b.is_complex() for b in M):
            # a real matrix: real and imaginary part are two columns
            K = M[0].shape[-1]
            parts = self._matmat(
                [torch.cat([b.real, _imaginary(b)], -1).to(self.dtype) for b in M]
            )
            out = [torch.complex(b[..., :K], b[..., K:]) for b in parts]
        else:
            out = self._matmat(M)
        del M  # so that the result can take its memory
        return form.write(out, self._codomain)

    def _slices(self, x: Vector, side: Side) -> Sequence[Tensor]:
        """A matrix cut into slices of :attr:`columns_at_once`; empty if it is no wider."""
        limit, axis = self.columns_at_once, 1 if side == "right" else 0
        if limit is None or not isinstance(x, Tensor) or x.ndim != 2:
            return ()
        is_wide = x.shape[axis] > limit and x.shape[1 - axis] == self._domain.dim
        return x.split(limit, axis) if is_wide else ()

    def _multiply_slices(self, slices: Sequence[Tensor], side: Side) -> Tensor:
        """One slice after the other, written into one result, to save memory."""
        axis = 1 if side == "right" else 0
        sizes = [part.shape[axis] for part in slices]
        out: Tensor | None = None
        for k, part in zip(itertools.accumulate(sizes, initial=0), slices, strict=False):
            product = self._multiply(part, side)
            assert isinstance(product, Tensor)
            rows = product.T if side == "right" else product  # columns are contiguous
            if out is None:
                out = rows.new_empty(sum(sizes), rows.shape[1])
            out[k : k + len(rows)] = rows
        assert out is not None
        return out.T if side == "right" else out

    # --------------------------------------------------------------- algebra

    def __add__(self, other: Any) -> LinearOperator:
        """``A + B``."""
        return SumLinearOperator(self, _summand(other))

    def __radd__(self, other: Any) -> LinearOperator:
        """``B + A``; ``0 + A`` is ``A``, so that ``sum`` works on operators."""
        if isinstance(other, int) and other == 0:
            return self
        return self.__add__(other)

    def __sub__(self, other: Any) -> LinearOperator:
        """``A - B``."""
        return SumLinearOperator(self, -_summand(other))

    def __rsub__(self, other: Any) -> LinearOperator:
        """``B - A``."""
        return (-self).__add__(other)

    def __neg__(self) -> LinearOperator:
        """``-A``."""
        return self * -1.0

    def __mul__(self, c: Any) -> LinearOperator:
        """``A * c`` for a real number ``c``."""
        c = as_scalar(c)
        if isinstance(self, ScaledLinearOperator):
            return ScaledLinearOperator(self._A, self._c * c)
        return ScaledLinearOperator(self, c)

    def __rmul__(self, c: Any) -> LinearOperator:
        """``c * A`` for a real number ``c``."""
        return self.__mul__(c)

    def __truediv__(self, c: Any) -> LinearOperator:
        """``A / c`` for a real number ``c``."""
        return self * (1.0 / as_scalar(c))

    @property
    def T(self) -> LinearOperator:
        """The transposed operator; the operator itself where it is symmetric."""
        if self.symmetric:
            return self
        AT = self._transpose()
        if are_transposed(self, AT) or isinstance(AT, ProductLinearOperator):
            return AT  # of a product, the factors know their transposes
        # refers to this operator, so that AᵀA is recognised as psd
        return TransposedLinearOperator(self, AT._matmat)

    def adjoint(self) -> LinearOperator:
        """The adjoint: for a real matrix, the transposed operator."""
        return self.T

    def __getitem__(self, index: Any) -> LinearOperator | Tensor:
        """``A[rows, cols]`` by integer, slice, mask, indices or parameter names.

        An integer drops its axis, as in NumPy: ``A[:, 3]`` is a column ``[M]``,
        ``A[2, 3]`` a number (0-dimensional tensor). Everything else gives an operator.

        Raises:
            TypeError: If an index is of an unknown kind.
            IndexError: If an index is out of range, or there are more than two.
            ValueError: If a mask has the wrong length or a name is unknown.
        """
        rows, cols, *more = index if isinstance(index, tuple) else (index, slice(None))
        if more:
            raise IndexError(f"Expected one or two indices, got {2 + len(more)}.")
        sub = SubmatrixLinearOperator(
            self,
            self.output_space.positions(rows, self.device),
            self.input_space.positions(cols, self.device),
        )
        drop_row, drop_col = _is_integer(rows), _is_integer(cols)
        if not drop_row and not drop_col:
            return sub
        one = torch.ones(1, dtype=self.dtype, device=self.device)
        vector: Tensor = sub @ one if drop_col else one @ sub
        return vector[0] if drop_row and drop_col else vector

    # ---------------------------------------------------------------- export

    def to_dense(self) -> Tensor:
        """The matrix as a tensor ``[M, N]``, by products with the identity.

        >>> from curvop import DiagonalLinearOperator
        >>> DiagonalLinearOperator(torch.tensor([1.0, 2.0])).to_dense()
        tensor([[1., 0.],
                [0., 2.]])
        """
        M, N = self.shape
        if M < N:
            return self.T.to_dense().T
        dense: Tensor = self @ torch.eye(N, dtype=self.dtype, device=self.device)
        return dense

    def to_scipy(self, dtype: DTypeLike | None = None) -> SciPyExport:
        """Export to SciPy, for every solver that takes a ``LinearOperator``.

        Integer vectors are promoted, complex ones are multiplied exactly. Vectors
        travel between NumPy and the operator's device at each product.

        Args:
            dtype: NumPy type of the exported operator; by default the operator's own
                (``float32`` for half-precision operators, which NumPy cannot hold).

        Returns:
            An operator with ``matvec``, ``rmatvec``, ``matmat`` and ``rmatmat``.

        >>> from curvop import DiagonalLinearOperator
        >>> A = DiagonalLinearOperator(torch.tensor([1.0, 2.0])).to_scipy()
        >>> A @ [1, 1]
        array([1., 2.], dtype=float32)
        """
        return SciPyExport(self, dtype)


def properties(A: LinearOperator) -> dict[str, Any]:
    """Spaces, type, device and tags: the arguments of an operator that is like ``A``."""
    return {
        "domain": A.input_space,
        "codomain": A.output_space,
        "dtype": A.dtype,
        "device": A.device,
        "symmetric": A.symmetric,
        "psd": A.psd,
    }


def _imaginary(b: Tensor) -> Tensor:
    return b.imag if b.is_complex() else torch.zeros_like(b)


def as_operator(A: Any) -> LinearOperator:
    """A tensor, array or matrix of SciPy as an operator.

    Args:
        A: A tensor ``[M, N]``, NumPy array, SciPy sparse matrix, SciPy
            ``LinearOperator``, or an operator of this library, which is returned as it is.

    Returns:
        The operator. A dense matrix is tagged as symmetric if it is so up to rounding;
        SciPy's carry no tags: see :func:`assume_symmetric`.

    Raises:
        TypeError: If ``A`` is none of these, or not real floating point.
        ValueError: If it is not two-dimensional.

    >>> as_operator(torch.eye(2))
    <2x2 DenseLinearOperator, torch.float32, cpu, symmetric>
    """
    return A if isinstance(A, LinearOperator) else converted(A)


@singledispatch
def converted(A: Any) -> LinearOperator:
    """Another kind of matrix as an operator; the file for a kind registers it."""
    raise TypeError(
        "Expected a curvop operator, a tensor, a NumPy array or a SciPy matrix or "
        f"LinearOperator, got {type(A).__name__}."
    )


# -------------------------------------------------------------- results of algebra


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
            merge(A.input_space, B.input_space, "domain"),
            merge(A.output_space, B.output_space, "codomain"),
            dtype=A.dtype,
            device=A.device,
            symmetric=A.symmetric and B.symmetric,
            psd=A.psd and B.psd,
        )
        self._terms = (A, B)

    def _matmat(self, M: Blocks) -> Blocks:
        AM, BM = (
            reshape(A._matmat(reshape(M, A.input_space)), self._codomain)
            for A in self._terms
        )
        return [a + b for a, b in zip(AM, BM, strict=True)]

    def _transpose(self) -> LinearOperator:
        A, B = self._terms
        return SumLinearOperator(A.T, B.T)


class ScaledLinearOperator(LinearOperator):
    """``c * A`` for a real number ``c``."""

    def __init__(self, A: LinearOperator, c: float) -> None:
        super().__init__(**properties(A) | {"psd": A.psd and c >= 0})
        self._A = A
        self._c = c

    def _matmat(self, M: Blocks) -> Blocks:
        return [self._c * b for b in self._A._matmat(M)]

    def _transpose(self) -> LinearOperator:
        return ScaledLinearOperator(self._A.T, self._c)


class ProductLinearOperator(LinearOperator):
    """``A₁ A₂ ⋯ Aₙ``, applied from the right.

    It is symmetric if its factors, transposed and in reverse order, are the same;
    ``Vᵀ B V`` is positive semi-definite if ``B`` is, and so is ``Vᵀ V``.
    """

    def __init__(self, *factors: LinearOperator) -> None:
        for A, B in pairwise(factors):
            check_match(A, B)
            if A.shape[1] != B.shape[0]:
                raise ValueError(f"Expected shapes that chain, got {A.shape} @ {B.shape}.")
            merge(A.input_space, B.output_space, "inner space")
        first, last = factors[0], factors[-1]
        n = len(factors)
        palindrome = all(
            are_transposed(factors[i], factors[n - 1 - i]) for i in range((n + 1) // 2)
        )
        middle = factors[n // 2] if n % 2 else None
        super().__init__(
            last.input_space,
            first.output_space,
            dtype=first.dtype,
            device=first.device,
            symmetric=palindrome,
            psd=palindrome and (middle is None or middle.psd),
        )
        self._factors = factors

    def _matmat(self, M: Blocks) -> Blocks:
        for A in reversed(self._factors):
            M = A._matmat(reshape(M, A.input_space))
        return M

    def _transpose(self) -> LinearOperator:
        return ProductLinearOperator(*(A.T for A in reversed(self._factors)))


class TransposedLinearOperator(LinearOperator):
    """``Aᵀ`` of an operator that can also multiply with its transpose."""

    def __init__(self, A: LinearOperator, rmatmat: Callable[[Blocks], Blocks]) -> None:
        super().__init__(A.output_space, A.input_space, dtype=A.dtype, device=A.device)
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


def _summand(B: Any) -> LinearOperator:
    """Anything that :func:`as_operator` accepts, as an operator.

    Raises:
        TypeError: If it is a number: a multiple of the identity must be written out.
    """
    if isinstance(B, numbers.Number) or (isinstance(B, Tensor) and B.ndim == 0):
        raise TypeError(
            "Expected an operator or a matrix, got a number. For damping write "
            "A + c * IdentityLinearOperator.like(A)."
        )
    return as_operator(B)


def _factors(A: LinearOperator) -> tuple[LinearOperator, ...]:
    """The factors of a product, so that products are never nested."""
    return A._factors if isinstance(A, ProductLinearOperator) else (A,)


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


class SubmatrixLinearOperator(LinearOperator):
    """``A[rows, cols] = Rᵀ A C`` with selections ``R`` and ``C`` of unit vectors."""

    def __init__(self, A: LinearOperator, rows: Tensor, cols: Tensor) -> None:
        same = rows.shape == cols.shape and bool((rows == cols).all())
        super().__init__(
            Space((cols.shape,)),
            Space((rows.shape,)),
            dtype=A.dtype,
            device=A.device,
            symmetric=A.symmetric and same,
            psd=A.psd and same,
        )
        self._A = A
        self._rows = rows
        self._cols = cols

    def _matmat(self, M: Blocks) -> Blocks:
        (v,) = M
        A = self._A
        # index_add_: a column may be selected twice; K leads, as in curvature products
        full = v.new_zeros(v.shape[1], A.shape[1]).index_add_(1, self._cols, v.T)
        out = A._matmat(reshape([full.T], A.input_space))
        (flat,) = reshape(out, Space((Size((A.shape[0],)),)))
        return [flat[self._rows]]

    def _transpose(self) -> LinearOperator:
        return SubmatrixLinearOperator(self._A.T, self._cols, self._rows)


def _is_integer(index: Any) -> bool:
    if isinstance(index, bool):
        return False
    if isinstance(index, Tensor):
        return index.ndim == 0 and index.dtype not in (torch.bool,)
    return hasattr(index, "__index__") and getattr(index, "ndim", 0) == 0
