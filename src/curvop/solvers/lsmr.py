"""Least squares by Golub-Kahan bidiagonalisation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from curvop.arguments import at_least
from curvop.checkpoint import Checkpoint
from curvop.operators import LinearOperator, Vector, as_operator
from curvop.solvers.iteration import Memory, iterate
from curvop.solvers.solution import Solution, solution_of
from curvop.solvers.system import (
    check_number,
    divided,
    norms,
    read_system,
    times,
)


def lsmr(
    A: Any,
    b: Vector,
    *,
    damp: float = 0.0,
    rtol: float = 1e-6,
    atol: float = 0.0,
    maxiter: int | None = None,
    x0: Vector | None = None,
    progressbar: bool = False,
) -> Solution:
    r"""Minimise ``‖b - A x‖² + damp² ‖x‖²`` for any ``A``, rectangular or rank deficient.

    .. math:: \lVert A^⊤ (b - A x) - \text{damp}^2 x \rVert
        ≤ \max(\text{rtol} \, \lVert A^⊤ b \rVert, \text{atol})

    is what ``"converged"`` means, computed from ``x``; or that the left side is zero up to
    rounding, ``≤ 10 ε ‖A‖ ‖b - A x‖``. This norm, which decreases from iteration to
    iteration, is the ``history`` of the solution. Among several minimisers the solution
    is the one of least norm, if ``x0`` is not given. Columns of ``b`` share each product
    with ``A`` and with ``Aᵀ``.

    Args:
        A: The matrix ``[M, N]``: anything that :func:`~curvop.as_operator` accepts.
        b: Right-hand sides: ``[M]``, ``[M, K]``, blocks, or a dict of blocks.
        damp: Weight of ``‖x‖``; the solution is ``(AᵀA + damp² I)⁻¹ Aᵀ b``.
        rtol: Tolerance relative to ``‖Aᵀ b‖``.
        atol: Absolute tolerance.
        maxiter: Most iterations; ``100 min(M, N)`` by default, since rounding delays
            convergence.
        x0: Where to start from, in the form of ``b``; zero by default.
        progressbar: Whether to show the residual in a bar.

    Returns:
        The solution, with ``x`` in the form of ``b``; ``residual_norm`` is ``‖b - A x‖``.

    Raises:
        TypeError: If something is of the wrong kind or dtype.
        ValueError: If something does not fit.
        FloatingPointError: If a product is not finite.

    References:
        Fong and Saunders, "LSMR: an iterative algorithm for sparse least-squares
        problems", 2011. Damping here is a further block of rows, ``damp I``.

    >>> from curvop import lsmr
    >>> A = torch.tensor([[1.0], [1.0]], dtype=torch.float64)
    >>> lsmr(A, torch.tensor([1.0, 3.0], dtype=torch.float64)).x.round(decimals=6)
    tensor([2.], dtype=torch.float64)
    """
    A = as_operator(A)
    system = read_system(A, b, x0)
    damp, rtol = check_number("damp", damp), check_number("rtol", rtol)
    atol = check_number("atol", atol)
    maxiter = 100 * min(A.shape) if maxiter is None else at_least(1, "maxiter", maxiter)
    method = LeastSquares(A, system.B, damp)
    run = iterate(
        method,
        system.X,
        tolerances=system.tolerances(norms(times(A.T, system.B)), rtol, atol),
        maxiter=maxiter,
        name="lsmr",
        progressbar=progressbar,
        file=Checkpoint(None),
    )
    # Aᵀ r cannot be computed more precisely: x solves a nearby problem
    eps, norm_A = torch.finfo(A.dtype).eps, run.memory["norm_A"].tolist()
    statuses = [
        "converged"
        if status == "stagnated" and norm <= 10 * eps * size * residual
        else status
        for status, norm, size, residual in zip(
            run.statuses, run.norms, norm_A, run.residual_norms, strict=True
        )
    ]
    return solution_of(system, replace(run, statuses=statuses))


@dataclass(frozen=True)
class LeastSquares:
    """``A`` over ``damp I``, times ``x``, close to ``b`` over zero, for each row ``b``.

    The recurrence is that of LSMR without damping, on the taller matrix.
    """

    A: LinearOperator
    B: Tensor  # [K, M]
    damp: float

    def start(self, rows: list[int], X: Tensor) -> Memory:
        """The first vectors of the bidiagonalisation, from the residual."""
        B = self.B[rows]
        R = self._tall(B, torch.zeros_like(X))
        if bool(X.any()):
            R = R - self._down(X)
        beta = norms(R)
        U = divided(R, beta)
        V = self._up(U)
        alpha = norms(V)
        V = divided(V, alpha)
        zero, one = torch.zeros_like(beta), torch.ones_like(beta)
        return {
            "U": U,
            "V": V,
            "H": V,
            "H_bar": torch.zeros_like(V),
            "alpha": alpha,
            "alpha_bar": alpha,
            "rho": one,
            "rho_bar": one,
            "c_bar": one,
            "s_bar": zero,
            "zeta_bar": alpha * beta,
            "norm": alpha * beta,
            "residual_norm": norms(R[:, : B.shape[1]]),
            "norm_A": alpha,
            "floor": zero,
        }

    def step(self, X: Tensor, m: Memory) -> tuple[Tensor, Memory, list[str]]:
        """A pair of vectors, and two rotations that make the matrix triangular twice."""
        alpha = m["alpha"]
        U = self._down(m["V"]) - alpha[:, None] * m["U"]
        beta = norms(U)
        U = divided(U, beta)
        V = self._up(U) - beta[:, None] * m["V"]
        new_alpha = norms(V)
        V = divided(V, new_alpha)

        rho = torch.hypot(m["alpha_bar"], beta)
        c, s = divided(m["alpha_bar"], rho), divided(beta, rho)
        theta = s * new_alpha
        theta_bar, inner = m["s_bar"] * rho, m["c_bar"] * rho
        rho_bar = torch.hypot(inner, theta)
        c_bar, s_bar = divided(inner, rho_bar), divided(theta, rho_bar)

        # without products of two numbers of the size of A, which may over- or underflow
        back = divided(theta_bar, m["rho"]) * divided(rho, m["rho_bar"])
        H_bar = m["H"] - back[:, None] * m["H_bar"]
        along = divided(divided(c_bar * m["zeta_bar"], rho), rho_bar)
        X = X + along[:, None] * H_bar
        zeta_bar = -s_bar * m["zeta_bar"]
        # A has at least the norm of a column of the bidiagonal matrix
        norm_A = torch.maximum(m["norm_A"], torch.hypot(alpha, beta))
        eps = torch.finfo(self.A.dtype).eps
        memory = {
            "U": U,
            "V": V,
            "H": V - divided(theta, rho)[:, None] * m["H"],
            "H_bar": H_bar,
            "alpha": new_alpha,
            "alpha_bar": c * new_alpha,
            "rho": rho,
            "rho_bar": rho_bar,
            "c_bar": c_bar,
            "s_bar": s_bar,
            "zeta_bar": zeta_bar,
            "norm": zeta_bar.abs(),
            "residual_norm": torch.full_like(beta, torch.nan),
            "norm_A": norm_A,
            "floor": eps * (norm_A * norms(X)) * norm_A,
        }
        return X, memory, [""] * len(X)

    def _tall(self, upper: Tensor, lower: Tensor) -> Tensor:
        return torch.cat([upper, lower], 1) if self.damp else upper

    def _down(self, V: Tensor) -> Tensor:
        """``A`` over ``damp I``, times ``V``."""
        return self._tall(times(self.A, V), self.damp * V)

    def _up(self, U: Tensor) -> Tensor:
        """``Aᵀ`` next to ``damp I``, times ``U``."""
        M = self.A.shape[0]
        V = times(self.A.T, U[:, :M].contiguous())
        return V + self.damp * U[:, M:] if self.damp else V
