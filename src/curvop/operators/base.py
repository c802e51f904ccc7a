"""LinearOperator: a matrix known by its products."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Size, Tensor

from curvop.operators.layout import Blocks, Side, Space, Vector, read

if TYPE_CHECKING:
    import numpy
    import scipy.sparse.linalg


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
    def _columns_at_once(self) -> int | None:
        """How many columns to multiply at once, if more need no less work."""
        return None

    # -------------------------------------------------------------- products

    def __matmul__(self, x: Any) -> Any:
        """``A @ x`` for a vector, matrix, blocks or operator ``x``."""
        if isinstance(x, LinearOperator):
            from curvop.operators.algebra import product

            return product(self, x)
        return self._multiply(x, "right")

    def __rmatmul__(self, x: Any) -> Any:
        """``x @ A`` for a vector, matrix or blocks ``x``."""
        return self.T._multiply(x, "left")

    def _multiply(self, x: Vector, side: Side) -> Vector:
        slices = self._slices(x, side)
        if slices:
            return self._multiply_slices(slices, side)
        M, form = read(x, self._domain, side)
        M = [self._admit(b) for b in M]
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
        del M  # its memory serves what is written
        return form.write(out, self._codomain)

    def _slices(self, x: Vector, side: Side) -> Sequence[Tensor]:
        """A matrix cut into as many columns as are multiplied at once."""
        limit, axis = self._columns_at_once, 1 if side == "right" else 0
        if limit is None or not isinstance(x, Tensor) or x.ndim != 2:
            return ()
        is_wide = x.shape[axis] > limit and x.shape[1 - axis] == self._domain.dim
        return x.split(limit, axis) if is_wide else ()

    def _multiply_slices(self, slices: Sequence[Tensor], side: Side) -> Tensor:
        """One slice after the other, into one result: no more memory than it needs."""
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

    def _admit(self, b: Tensor) -> Tensor:
        """Promote integers, refuse what would be truncated or copied across devices."""
        if b.device != self.device:
            raise ValueError(
                f"Expected a vector on {self.device}, got one on {b.device}. Move it "
                f"with .to({str(self.device)!r})."
            )
        if b.is_complex():
            if b.dtype.to_real() != self.dtype and self.dtype.itemsize > 2:
                raise TypeError(
                    f"Expected {self.dtype.to_complex()}, got {b.dtype}. Convert it "
                    f"with .to({self.dtype.to_complex()})."
                )
            return b
        if not b.dtype.is_floating_point:
            return b.to(self.dtype)
        if b.dtype != self.dtype:
            raise TypeError(
                f"Expected a vector of dtype {self.dtype}, got {b.dtype}. Convert it "
                f"with .to({self.dtype})."
            )
        return b

    # --------------------------------------------------------------- algebra

    def __add__(self, other: Any) -> LinearOperator:
        """``A + B``."""
        from curvop.operators.algebra import total

        return total(self, other)

    def __radd__(self, other: Any) -> LinearOperator:
        """``B + A``; ``0 + A`` is ``A``, so that ``sum`` works on operators."""
        if isinstance(other, int) and other == 0:
            return self
        return self.__add__(other)

    def __sub__(self, other: Any) -> LinearOperator:
        """``A - B``."""
        from curvop.operators.algebra import total

        return total(self, other, sign=-1.0)

    def __rsub__(self, other: Any) -> LinearOperator:
        """``B - A``."""
        return (-self).__add__(other)

    def __neg__(self) -> LinearOperator:
        """``-A``."""
        return self * -1.0

    def __mul__(self, c: Any) -> LinearOperator:
        """``A * c`` for a real number ``c``."""
        from curvop.operators.algebra import scaled

        return scaled(self, c)

    def __rmul__(self, c: Any) -> LinearOperator:
        """``c * A`` for a real number ``c``."""
        return self.__mul__(c)

    def __truediv__(self, c: Any) -> LinearOperator:
        """``A / c`` for a real number ``c``."""
        from curvop.operators.algebra import as_scalar, scaled

        return scaled(self, 1.0 / as_scalar(c))

    @property
    def T(self) -> LinearOperator:
        """The transposed operator; the operator itself where it is symmetric."""
        if self.symmetric:
            return self
        from curvop.operators.algebra import remembered

        return remembered(self, self._transpose())

    def adjoint(self) -> LinearOperator:
        """The adjoint: for a real matrix, the transposed operator."""
        return self.T

    def __getitem__(self, index: Any) -> LinearOperator | Tensor:
        """``A[rows, cols]`` by integer, slice, mask, indices or parameter names.

        An integer drops its axis, as in NumPy: ``A[:, 3]`` is a column ``[M]``,
        ``A[2, 3]`` a number (0-dimensional tensor). Everything else gives an operator.
        """
        from curvop.operators.submatrix import submatrix

        return submatrix(self, index)

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

    def to_scipy(
        self, dtype: numpy.typing.DTypeLike | None = None
    ) -> scipy.sparse.linalg.LinearOperator:
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
        from curvop.operators.interop import SciPyExport

        return SciPyExport(self, dtype)


def _imaginary(b: Tensor) -> Tensor:
    return b.imag if b.is_complex() else torch.zeros_like(b)
