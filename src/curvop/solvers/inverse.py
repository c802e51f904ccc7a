"""Inverses as operators: each product solves a linear system."""

from __future__ import annotations

import math
from typing import Any

from curvop.arguments import at_least
from curvop.operators import Blocks, LinearOperator, as_operator, properties
from curvop.solvers.cg import cg
from curvop.solvers.lsmr import lsmr
from curvop.solvers.minres import minres
from curvop.solvers.solution import NotConvergedError, Solution
from curvop.solvers.system import (
    blocks_of,
    check_number,
    divided,
    norms,
    preconditioner,
    rows_of,
    tagged,
    times,
)


class CGInverseLinearOperator(LinearOperator):
    """``A⁻¹`` of a positive definite ``A``, by conjugate gradients.

    A product solves for all its columns at once, to a relative residual of ``rtol``: to
    this precision the operator is linear and symmetric.

    Args:
        A: An operator tagged ``psd``; see :func:`~curvop.assume_psd` for others.
        rtol: Tolerance of each solve, relative to the right-hand side.
        atol: Absolute tolerance.
        maxiter: Most iterations of each solve.
        M: Preconditioner, see :func:`~curvop.cg`.
        progressbar: Whether each solve shows a bar.

    Raises:
        ValueError: If ``A`` is not tagged, or an option is out of range.
        NotConvergedError: At a product, if a solve has not converged.

    >>> import torch
    >>> from curvop import CGInverseLinearOperator, assume_psd
    >>> A = assume_psd(torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
    >>> (CGInverseLinearOperator(A) @ torch.tensor([2.0, 2.0])).round(decimals=4)
    tensor([1.0000, 0.5000])
    """

    def __init__(
        self,
        A: Any,
        *,
        rtol: float = 1e-6,
        atol: float = 0.0,
        maxiter: int | None = None,
        M: Any = None,
        progressbar: bool = False,
    ) -> None:
        A = tagged(A, "CGInverseLinearOperator", "psd")
        super().__init__(
            A.input_space, A.input_space, dtype=A.dtype, device=A.device, psd=True
        )
        self._A = A
        self._options = _checked(rtol, atol, maxiter, progressbar) | {
            "M": preconditioner(M, A)
        }

    def _matmat(self, M: Blocks) -> Blocks:
        return _solved(cg(self._A, M, **self._options), "cg")

    def _transpose(self) -> LinearOperator:
        return self


class MINRESInverseLinearOperator(LinearOperator):
    """``(A - shift I)⁻¹`` of a symmetric ``A``, by minimal residuals.

    A product solves for all its columns at once, to a relative residual of ``rtol``: to
    this precision the operator is linear and symmetric.

    Args:
        A: An operator tagged ``symmetric``; see :func:`~curvop.assume_symmetric` for
            others.
        shift: Subtracted from the diagonal.
        rtol: Tolerance of each solve, relative to the right-hand side.
        atol: Absolute tolerance.
        maxiter: Most iterations of each solve.
        M: Positive definite preconditioner, see :func:`~curvop.minres`.
        progressbar: Whether each solve shows a bar.

    Raises:
        ValueError: If ``A`` is not tagged, or an option is out of range.
        NotConvergedError: At a product, if a solve has not converged.

    >>> import torch
    >>> from curvop import MINRESInverseLinearOperator
    >>> A = torch.tensor([[2.0, 0.0], [0.0, -4.0]])
    >>> (MINRESInverseLinearOperator(A) @ torch.tensor([2.0, 2.0])).round(decimals=4)
    tensor([ 1.0000, -0.5000])
    """

    def __init__(
        self,
        A: Any,
        *,
        shift: float = 0.0,
        rtol: float = 1e-6,
        atol: float = 0.0,
        maxiter: int | None = None,
        M: Any = None,
        progressbar: bool = False,
    ) -> None:
        A = tagged(A, "MINRESInverseLinearOperator", "symmetric")
        shift = check_number("shift", shift, least=-math.inf)
        super().__init__(
            A.input_space,
            A.input_space,
            dtype=A.dtype,
            device=A.device,
            symmetric=True,
            psd=A.psd and shift <= 0,
        )
        self._A = A
        self._options = _checked(rtol, atol, maxiter, progressbar) | {
            "shift": shift,
            "M": preconditioner(M, A),
        }

    def _matmat(self, M: Blocks) -> Blocks:
        return _solved(minres(self._A, M, **self._options), "minres")

    def _transpose(self) -> LinearOperator:
        return self


class LSMRInverseLinearOperator(LinearOperator):
    r"""The pseudo-inverse ``A⁺``, or with damping a regularised one, by LSMR.

    .. math:: (A^⊤ A + \text{damp}^2 I)^{-1} A^⊤

    Its transpose is the same for ``Aᵀ``. A product solves for all its columns at once, to a
    relative residual of ``rtol`` of the normal equations.

    Args:
        A: The matrix ``[M, N]``: anything that :func:`~curvop.as_operator` accepts.
        damp: Weight of the norm of the solution.
        rtol: Tolerance of each solve, relative to ``‖Aᵀ b‖``.
        atol: Absolute tolerance.
        maxiter: Most iterations of each solve.
        progressbar: Whether each solve shows a bar.

    Raises:
        ValueError: If an option is out of range.
        NotConvergedError: At a product, if a solve has not converged.

    >>> import torch
    >>> from curvop import LSMRInverseLinearOperator
    >>> A = torch.tensor([[1.0], [1.0]])
    >>> LSMRInverseLinearOperator(A).to_dense().round(decimals=4)
    tensor([[0.5000, 0.5000]])
    """

    def __init__(
        self,
        A: Any,
        *,
        damp: float = 0.0,
        rtol: float = 1e-6,
        atol: float = 0.0,
        maxiter: int | None = None,
        progressbar: bool = False,
    ) -> None:
        A = as_operator(A)
        sides = {"domain": A.output_space, "codomain": A.input_space}
        super().__init__(**properties(A) | sides)
        self._A = A
        self._options = _checked(rtol, atol, maxiter, progressbar) | {
            "damp": check_number("damp", damp)
        }

    def _matmat(self, M: Blocks) -> Blocks:
        return _solved(lsmr(self._A, M, **self._options), "lsmr")

    def _transpose(self) -> LinearOperator:
        return LSMRInverseLinearOperator(self._A.T, **self._options)


class NeumannInverseLinearOperator(LinearOperator):
    r"""``A⁻¹`` by a fixed number of terms of its Neumann series: a polynomial of ``A``.

    .. math:: A^{-1} ≈ s \sum_{j=0}^{m-1} (I - s A)^j

    It converges if every eigenvalue of ``s A`` is in the disc ``|1 - z| < 1``: for a
    positive definite ``A``, if ``0 < s < 2 / λ_max``. The residual is ``(I - s A)ᵐ b``, and
    is checked at each product.

    Args:
        A: A square matrix: anything that :func:`~curvop.as_operator` accepts.
        num_terms: Number ``m`` of terms; a product takes ``m`` products with ``A``.
        scale: ``s``.
        rtol: Largest residual relative to the right-hand side. With ``1``, for a truncated
            series, only divergence is an error.

    Raises:
        TypeError: If an option is of the wrong kind.
        ValueError: If ``A`` is not square, or an option is out of range.
        NotConvergedError: At a product, if the residual is larger.

    >>> import torch
    >>> from curvop import NeumannInverseLinearOperator
    >>> A = torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    >>> NeumannInverseLinearOperator(A, num_terms=3) @ torch.tensor([1.0, 1.0])
    tensor([0.5000, 1.0000])
    """

    def __init__(
        self,
        A: Any,
        *,
        num_terms: int = 100,
        scale: float = 1.0,
        rtol: float = 1e-6,
    ) -> None:
        A = as_operator(A)
        if A.domain != A.codomain:
            raise ValueError(
                "Expected a matrix with equal domain and codomain, got "
                f"{A.domain} and {A.codomain}."
            )
        rtol, scale = check_number("rtol", rtol), check_number("scale", scale)
        if rtol > 1 or scale == 0:
            raise ValueError(
                f"Expected rtol of at most 1 and a positive scale, got {rtol} and {scale}."
            )
        super().__init__(**properties(A))
        self._A = A
        self._num_terms = at_least(1, "num_terms", num_terms)
        self._scale = scale
        self._rtol = rtol

    def _matmat(self, M: Blocks) -> Blocks:
        B = rows_of(M)
        X, R = self._scale * B, B
        for term in range(self._num_terms):
            R = R - self._scale * times(self._A, R)
            if term < self._num_terms - 1:
                X = X + self._scale * R
        left = float(divided(norms(R), norms(B)).max())
        if not left <= self._rtol:
            raise NotConvergedError(
                f"The Neumann series leaves {left:.1e} of the right-hand side after "
                f"{self._num_terms} terms, more than rtol={self._rtol:g}. Take more terms, "
                "or a scale below 2 / λ_max; or cg, minres or lsmr."
            )
        return blocks_of(X, self.input_space)

    def _transpose(self) -> LinearOperator:
        return NeumannInverseLinearOperator(
            self._A.T, num_terms=self._num_terms, scale=self._scale, rtol=self._rtol
        )


def _checked(
    rtol: float, atol: float, maxiter: int | None, progressbar: bool
) -> dict[str, Any]:
    return {
        "rtol": check_number("rtol", rtol),
        "atol": check_number("atol", atol),
        "maxiter": None if maxiter is None else at_least(1, "maxiter", maxiter),
        "progressbar": progressbar,
    }


def _solved(solution: Solution, name: str) -> Blocks:
    """The solution as blocks.

    Raises:
        NotConvergedError: If a column has not converged.
    """
    if not solution.converged:
        K = len(solution.statuses)
        failed = sum(status != "converged" for status in solution.statuses)
        raise NotConvergedError(
            f"{name} ended as {solution.status!r} after {solution.iterations} iterations, "
            f"with {failed} of {K} columns not converged; the largest residual is "
            f"{float(solution.residual_norm.max()):.1e}. Give a larger maxiter or rtol, "
            "more damping, or a preconditioner."
        )
    return list(solution.x)
