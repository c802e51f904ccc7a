"""Structured operators: dense, identity, diagonal, block-diagonal, low rank."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Size, Tensor

from curvop.operators.layout import Blocks, Space, flatten, unflatten
from curvop.operators.linear_operator import (
    LinearOperator,
    TransposedLinearOperator,
    check_match,
    converted,
)
from curvop.operators.probing import tolerance


def _space(shapes: Sequence[Sequence[int]] | None, N: int, side: str) -> Space:
    """The given block shapes, or the flat space; they must have ``N`` entries."""
    space = Space(tuple(Size(s) for s in ([(N,)] if shapes is None else shapes)))
    if space.dim != N:
        raise ValueError(
            f"Expected a {side} with {N} entries, got {space.dim} in {shapes}."
        )
    return space


def _check_matrix(A: Tensor, name: str) -> None:
    if not isinstance(A, Tensor):
        raise TypeError(f"Expected {name} as a tensor, got {type(A).__name__}.")
    if A.ndim != 2:
        raise ValueError(f"Expected {name} with 2 dimensions, got {tuple(A.shape)}.")


def _check_alike(tensors: Sequence[Tensor]) -> None:
    first = tensors[0]
    for t in tensors[1:]:
        if t.dtype != first.dtype:
            raise TypeError(f"Expected one dtype, got {first.dtype} and {t.dtype}.")
        if t.device != first.device:
            raise ValueError(f"Expected one device, got {first.device} and {t.device}.")


def _is_symmetric(A: Tensor) -> bool:
    """Whether ``A = Aᵀ`` up to rounding, with the tolerance for products."""
    if A.shape[0] != A.shape[1]:
        return False
    if bool((A == A.T).all()):
        return True
    if not A.is_floating_point():
        return False
    return bool((A - A.T).abs().max() <= tolerance(A.dtype) * A.abs().max())


@converted.register(Tensor)
def _(A: Tensor) -> LinearOperator:
    return DenseLinearOperator(A)


class DenseLinearOperator(LinearOperator):
    """A matrix that is stored.

    Args:
        A: The matrix ``[M, N]``.
        domain: Block shapes of the input, ``N`` entries; by default one block ``[N]``.
        codomain: Block shapes of the output, ``M`` entries.
        symmetric: Whether ``A = Aᵀ``; by default found out from the entries, up to
            rounding.
        psd: Whether ``A`` is known to be positive semi-definite.

    Raises:
        TypeError: If ``A`` is not a real floating-point tensor.
        ValueError: If it is not a matrix, or does not fit the spaces or the tags.

    >>> A = DenseLinearOperator(torch.tensor([[2.0, 0.0], [1.0, 1.0]]))
    >>> A @ torch.tensor([1.0, 1.0])
    tensor([2., 2.])
    """

    def __init__(
        self,
        A: Tensor,
        *,
        domain: Sequence[Sequence[int]] | None = None,
        codomain: Sequence[Sequence[int]] | None = None,
        symmetric: bool | None = None,
        psd: bool = False,
    ) -> None:
        _check_matrix(A, "the matrix")
        A = A.detach()
        is_symmetric = _is_symmetric(A)
        if (symmetric or psd) and not is_symmetric:
            raise ValueError("Tagged as symmetric, but the matrix is not.")
        inputs = _space(domain, A.shape[1], "domain")
        outputs = _space(codomain, A.shape[0], "codomain")
        super().__init__(
            inputs,
            outputs,
            dtype=A.dtype,
            device=A.device,
            symmetric=is_symmetric and inputs == outputs
            if symmetric is None
            else symmetric,
            psd=psd,
        )
        self._matrix = A

    def _matmat(self, M: Blocks) -> Blocks:
        return unflatten(self._matrix @ flatten(M), self._codomain)

    def _rmatmat(self, M: Blocks) -> Blocks:
        return unflatten(self._matrix.T @ flatten(M), self._domain)

    def _transpose(self) -> LinearOperator:
        return TransposedLinearOperator(self, self._rmatmat)


class IdentityLinearOperator(LinearOperator):
    """The identity.

    Args:
        space: Block shapes, for instance ``A.domain``; an integer ``N`` means ``[N]``.
        dtype: Floating-point type; the default type if omitted.
        device: Where vectors live.

    >>> I = IdentityLinearOperator(2)
    >>> I @ torch.tensor([1.0, 2.0])
    tensor([1., 2.])
    """

    def __init__(
        self,
        space: int | Sequence[Sequence[int]],
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        names: Sequence[str] | None = None,
    ) -> None:
        shapes = ((space,),) if isinstance(space, int) else space
        blocks = Space(
            tuple(Size(s) for s in shapes), None if names is None else tuple(names)
        )
        super().__init__(
            blocks,
            blocks,
            dtype=dtype or torch.get_default_dtype(),
            device=torch.device(device),
            psd=True,
        )

    @classmethod
    def like(cls, A: LinearOperator) -> IdentityLinearOperator:
        """The identity on the domain of ``A``, as in ``A + damping * I``."""
        return cls(A.domain, dtype=A.dtype, device=A.device, names=A.domain_names)

    def _matmat(self, M: Blocks) -> Blocks:
        return [b.clone() for b in M]

    def _transpose(self) -> LinearOperator:
        return self


class DiagonalLinearOperator(LinearOperator):
    """``diag(d)``.

    Args:
        diagonal: The entries: one tensor ``[N]``, or a list of blocks of any shape.
        names: Names of the blocks.

    Raises:
        TypeError: If the entries are not real floating-point tensors.
        ValueError: If there are none.

    >>> D = DiagonalLinearOperator([torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])])
    >>> D @ torch.ones(3)
    tensor([1., 2., 3.])
    """

    def __init__(
        self, diagonal: Tensor | Sequence[Tensor], *, names: Sequence[str] | None = None
    ) -> None:
        blocks = [diagonal] if isinstance(diagonal, Tensor) else list(diagonal)
        if not blocks:
            raise ValueError("Expected at least one block of diagonal entries.")
        _check_alike(blocks)
        space = Space(
            tuple(b.shape for b in blocks), None if names is None else tuple(names)
        )
        super().__init__(
            space,
            space,
            dtype=blocks[0].dtype,
            device=blocks[0].device,
            symmetric=True,
            psd=all(bool((b >= 0).all()) for b in blocks),
        )
        self._diagonal = [b.detach() for b in blocks]

    def _matmat(self, M: Blocks) -> Blocks:
        return [d.unsqueeze(-1) * b for d, b in zip(self._diagonal, M, strict=True)]

    def _transpose(self) -> LinearOperator:
        return self


class BlockDiagonalLinearOperator(LinearOperator):
    """``diag(A₁, …, Aₙ)`` from operators: domains and codomains follow one another.

    Args:
        blocks: The operators on the diagonal, of one dtype and device.

    Raises:
        ValueError: If there are none, or they live on different devices.
        TypeError: If their dtypes differ.

    >>> A = DenseLinearOperator(torch.tensor([[2.0]]))
    >>> BlockDiagonalLinearOperator([A, 3 * A]).to_dense()
    tensor([[2., 0.],
            [0., 6.]])
    """

    def __init__(self, blocks: Sequence[LinearOperator]) -> None:
        if not blocks:
            raise ValueError("Expected at least one operator on the diagonal.")
        for A in blocks[1:]:
            check_match(blocks[0], A)
        super().__init__(
            _join([A.input_space for A in blocks]),
            _join([A.output_space for A in blocks]),
            dtype=blocks[0].dtype,
            device=blocks[0].device,
            symmetric=all(A.symmetric for A in blocks),
            psd=all(A.psd for A in blocks),
        )
        self._operators = tuple(blocks)

    def _matmat(self, M: Blocks) -> Blocks:
        out: Blocks = []
        for A in self._operators:
            mine, M = M[: len(A.domain)], M[len(A.domain) :]
            out += A._matmat(mine)
        return out

    def _transpose(self) -> LinearOperator:
        return BlockDiagonalLinearOperator([A.T for A in self._operators])


def _join(spaces: Sequence[Space]) -> Space:
    shapes = tuple(s for space in spaces for s in space.shapes)
    names = tuple(n for space in spaces for n in space.names or ())
    return Space(shapes, names if len(set(names)) == len(shapes) else None)


class LowRankLinearOperator(LinearOperator):
    """``U diag(c) Vᵀ`` with few columns.

    Args:
        U: Left factor ``[M, R]``.
        V: Right factor ``[N, R]``; by default ``U``, which makes the matrix symmetric.
        coefficients: ``c``, shape ``[R]``; by default ones.

    Raises:
        TypeError: If a factor is not a real floating-point tensor.
        ValueError: If the shapes do not fit.

    >>> U = torch.tensor([[1.0], [2.0]])
    >>> LowRankLinearOperator(U).to_dense()
    tensor([[1., 2.],
            [2., 4.]])
    """

    def __init__(
        self, U: Tensor, V: Tensor | None = None, coefficients: Tensor | None = None
    ) -> None:
        _check_matrix(U, "U")
        R = U.shape[1]
        if V is not None:
            _check_matrix(V, "V")
            if V.shape[1] != R:
                raise ValueError(f"Expected V with {R} columns, got {V.shape[1]}.")
        c = torch.ones(R, dtype=U.dtype, device=U.device)
        if coefficients is not None:
            if coefficients.shape != (R,):
                raise ValueError(
                    f"Expected coefficients of shape ({R},), got "
                    f"{tuple(coefficients.shape)}."
                )
            c = coefficients.detach()
        _check_alike([U, c] if V is None else [U, V, c])
        super().__init__(
            _space(None, (U if V is None else V).shape[0], "domain"),
            _space(None, U.shape[0], "codomain"),
            dtype=U.dtype,
            device=U.device,
            symmetric=V is None,
            psd=V is None and bool((c >= 0).all()),
        )
        self._U = U.detach()
        self._V = self._U if V is None else V.detach()
        self._c = c

    def _matmat(self, M: Blocks) -> Blocks:
        (v,) = M
        return [self._U @ (self._c[:, None] * (self._V.T @ v))]

    def _transpose(self) -> LinearOperator:
        return LowRankLinearOperator(self._V, self._U, self._c)
