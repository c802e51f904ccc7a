"""The arguments of an eigenproblem, checked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from curvop.arguments import integer
from curvop.operators import LinearOperator, as_operator
from curvop.spectra.krylov import Which


def symmetric(matrix: Any, name: str = "matrix") -> LinearOperator:
    """An operator that is tagged as symmetric.

    Raises:
        TypeError: If it is not an operator.
        ValueError: If it is not square, or not tagged.
    """
    A = as_operator(matrix)
    if A.shape[0] != A.shape[1]:
        raise ValueError(
            f"Expected a square {name}, got shape {tuple(A.shape)}. For singular values "
            "see svds."
        )
    if not A.symmetric:
        raise ValueError(
            f"Expected a symmetric {name}, got {A} without the tag. If you know that it "
            "is, say assume_symmetric."
        )
    return A


def companion(matrix: Any, name: str, A: LinearOperator) -> LinearOperator | None:
    """A symmetric operator of the shape of ``A``, or ``None``.

    Raises:
        TypeError: If it is not an operator, or of another dtype.
        ValueError: If it is of another shape, on another device, or not tagged.
    """
    if matrix is None:
        return None
    B = symmetric(matrix, name)
    if B.shape != A.shape:
        raise ValueError(f"Expected {name} of shape {A.shape}, got {B.shape}.")
    if B.dtype != A.dtype:
        raise TypeError(f"Expected {name} of dtype {A.dtype}, got {B.dtype}.")
    if B.device != A.device:
        raise ValueError(f"Expected {name} on {A.device}, got it on {B.device}.")
    return B


def end(which: Any, *, psd: bool, inverse: bool) -> Which:
    """Which end of the spectrum to compute: of the inverse, if there is one.

    Raises:
        ValueError: If products cannot reach it.
    """
    if which not in ("LA", "SA", "LM", "SM", "BE"):
        raise ValueError(f"Expected which as LA, SA, LM, SM or BE, got {which!r}.")
    if inverse:
        if which != "SM":
            raise ValueError(
                f"inverse= is for which='SM', the values next to zero; got {which!r}."
            )
        return "LM"
    if which == "SM" and not psd:
        raise ValueError(
            "which='SM' of an indefinite matrix: products with A do not reach the inside "
            "of the spectrum. Give inverse=, an operator of A⁻¹ such as "
            "MINRESInverseLinearOperator(A), or say assume_psd(A) if it is. For values "
            "next to s, take A - s I for A."
        )
    end: Which = "SA" if which == "SM" else which
    return end


def largest(which: Which, *, psd: bool, inverse: bool) -> bool:
    """Whether LOBPCG computes the largest values, or the smallest.

    Raises:
        ValueError: If both ends are asked for.
    """
    if inverse:
        raise ValueError("For method='lobpcg' give A⁻¹ as the preconditioner M.")
    if which == "BE" or (which == "LM" and not psd):
        raise ValueError(
            f"LOBPCG finds one end of the spectrum, not {which!r}: say which='LA' or 'SA'."
        )
    return which != "SA"


def basis_size(ncv: Any, k: int, block_size: int, N: int) -> int:
    """Number of Lanczos vectors.

    Raises:
        TypeError: If it is not an integer.
        ValueError: If a restart would leave no room for new vectors, or if it is too large.
    """
    if ncv is None:
        roomy = min(300, 2**20 // N)  # if the basis takes little memory
        return min(N, max(2 * k + 1, 20, k + 4 * block_size, roomy))
    size = integer(ncv, "ncv", 1, N)
    least = min(N, k + 2 * block_size)
    if size < least:
        raise ValueError(
            f"Expected ncv of at least k + 2 block_size, here {least}, got {size}. By "
            "default it is max(2k + 1, 20) or more."
        )
    return size


def start(v0: Any, A: LinearOperator, columns: int) -> Tensor | None:
    """Start vectors as rows ``[b, N]``.

    Raises:
        TypeError: If ``v0`` is not a tensor of the dtype of ``A``.
        ValueError: If it does not fit, is not finite, or has a zero column.
    """
    if v0 is None:
        return None
    if not isinstance(v0, Tensor):
        raise TypeError(f"Expected v0 as a tensor, got {type(v0).__name__}.")
    N = A.shape[0]
    if v0.shape not in ((N,), (N, columns)):
        shape = f"({N},)" if columns == 1 else f"({N},) or ({N}, {columns})"
        raise ValueError(f"Expected v0 of shape {shape}, got {tuple(v0.shape)}.")
    if v0.dtype != A.dtype:
        raise TypeError(
            f"Expected v0 of dtype {A.dtype}, got {v0.dtype}. Convert it with "
            f".to({A.dtype})."
        )
    if v0.device != A.device:
        raise ValueError(f"Expected v0 on {A.device}, got it on {v0.device}.")
    V = v0.detach().reshape(N, -1).T
    if not bool(torch.isfinite(V).all()) or not bool((V != 0).any(1).all()):
        raise ValueError("Expected finite start vectors that are not zero.")
    return V
