"""Tags that the user knows to hold and the library cannot check."""

from __future__ import annotations

from typing import Any

from curvop.operators.layout import Blocks, reshape
from curvop.operators.linear_operator import LinearOperator, as_operator


class TaggedLinearOperator(LinearOperator):
    """The same matrix with other tags."""

    def __init__(self, A: LinearOperator, *, psd: bool) -> None:
        if A.shape[0] != A.shape[1]:
            raise ValueError(f"A symmetric matrix is square; this one is {A.shape}.")
        super().__init__(
            A.input_space,
            A.input_space,
            dtype=A.dtype,
            device=A.device,
            symmetric=True,
            psd=psd,
        )
        self._A = A

    def _matmat(self, M: Blocks) -> Blocks:
        return reshape(self._A._matmat(M), self.input_space)

    def _transpose(self) -> LinearOperator:
        return self


def assume_symmetric(A: Any) -> LinearOperator:
    """Tag ``A`` as symmetric; nothing is checked.

    Args:
        A: An operator, or anything that :func:`as_operator` accepts.

    Raises:
        ValueError: If ``A`` is not square.

    >>> import scipy.sparse
    >>> assume_symmetric(scipy.sparse.eye(3, format="csr")).symmetric
    True
    """
    A = as_operator(A)
    return A if A.symmetric else TaggedLinearOperator(A, psd=False)


def assume_psd(A: Any) -> LinearOperator:
    """Tag ``A`` as symmetric positive semi-definite; nothing is checked.

    Args:
        A: An operator, or anything that :func:`as_operator` accepts.

    Raises:
        ValueError: If ``A`` is not square.

    >>> import torch
    >>> assume_psd(torch.eye(2)).psd
    True
    """
    A = as_operator(A)
    return A if A.psd else TaggedLinearOperator(A, psd=True)
