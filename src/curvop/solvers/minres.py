"""Minimal residuals, for symmetric matrices that are not definite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvop.arguments import at_least
from curvop.checkpoint import Checkpoint
from curvop.operators import LinearOperator, Vector
from curvop.scaling import unit
from curvop.solvers.iteration import Memory, iterate
from curvop.solvers.solution import Solution, solution_of
from curvop.solvers.system import (
    INDEFINITE,
    UNSYMMETRIC,
    check_number,
    divided,
    dots,
    norms,
    preconditioner,
    read_system,
    tagged,
    times,
)


def minres(
    A: Any,
    b: Vector,
    *,
    shift: float = 0.0,
    rtol: float = 1e-6,
    atol: float = 0.0,
    maxiter: int | None = None,
    M: Any = None,
    x0: Vector | None = None,
    progressbar: bool = False,
) -> Solution:
    r"""Solve ``(A - shift I) x = b`` for a symmetric ``A``, definite or not.

    Each iterate has the smallest residual in its Krylov space, in the norm of ``M``.
    ``"converged"`` means, as in :func:`~curvop.cg`, that the residual computed from ``x``
    is at most ``max(rtol ‖b‖, atol)``. Columns of ``b`` share each product.

    The sign of ``shift`` is that of SciPy's ``minres`` and of eigenvalue problems: a
    shift at an eigenvalue makes the matrix singular. Damping is ``shift=-damping``.

    Args:
        A: The matrix ``[N, N]``: an operator tagged ``symmetric``, or a symmetric tensor;
            see :func:`~curvop.assume_symmetric` for others.
        b: Right-hand sides: ``[N]``, ``[N, K]``, blocks, or a dict of blocks.
        shift: Subtracted from the diagonal.
        rtol: Tolerance relative to ``‖b‖``.
        atol: Absolute tolerance.
        maxiter: Most iterations; ``100 N`` by default, since rounding delays convergence.
        M: Positive definite preconditioner, close to ``|A - shift I|⁻¹``: an operator
            tagged ``psd``.
        x0: Where to start from, in the form of ``b``; zero by default.
        progressbar: Whether to show the residual in a bar.

    Returns:
        The solution, with ``x`` in the form of ``b``. If the matrix is singular and ``b``
        not in its range, it has the smallest residual and the status ``"singular"`` or
        ``"stagnated"``.

    Raises:
        TypeError: If something is of the wrong kind or dtype.
        ValueError: If something does not fit, or ``A`` is not tagged or turns out not to
            be symmetric.
        FloatingPointError: If a product is not finite.

    References:
        Paige and Saunders, "Solution of sparse indefinite systems of linear equations",
        1975; with a preconditioner Elman, Silvester and Wathen, "Finite elements and fast
        iterative solvers", 2014, algorithm 4.1.

    >>> from curvop import minres
    >>> A = torch.tensor([[0.0, 2.0], [2.0, 0.0]])
    >>> minres(A, torch.tensor([2.0, 4.0])).x.round(decimals=4)
    tensor([2., 1.])
    """
    A = tagged(A, "minres", "symmetric")
    M = preconditioner(M, A)
    system = read_system(A, b, x0)
    rtol, atol = check_number("rtol", rtol), check_number("atol", atol)
    run = iterate(
        MinimalResiduals(A, system.B, M, check_number("shift", shift, least=-math.inf)),
        system.X,
        tolerances=system.tolerances(norms(system.B), rtol, atol),
        maxiter=100 * A.shape[1] if maxiter is None else at_least(1, "maxiter", maxiter),
        name="minres",
        progressbar=progressbar,
        file=Checkpoint(None),
    )
    return solution_of(system, run)


@dataclass(frozen=True)
class MinimalResiduals:
    """``(A - σ I) x = b`` for each row ``b`` of ``B``."""

    A: LinearOperator
    B: Tensor  # [K, N]
    M: LinearOperator | None
    shift: float

    def start(self, rows: list[int], X: Tensor) -> Memory:
        """A Krylov space from the residual."""
        R = self.B[rows]
        if bool(X.any()):
            R = R - self._times(X)
        Z = self._precondition(R)
        squared = dots(R, Z)
        if bool((squared < 0).any()):
            raise ValueError(INDEFINITE)
        gamma = squared.sqrt().to(R.dtype)
        zero, one, norm = torch.zeros_like(gamma), torch.ones_like(gamma), norms(R)
        return {
            "R": R,
            "V_old": torch.zeros_like(R),
            "V": divided(R, gamma),
            "Z": divided(Z, gamma),
            "W_old": torch.zeros_like(R),
            "W": torch.zeros_like(R),
            "gamma": gamma,
            "eta": gamma,
            "c_old": one,
            "c": one,
            "s_old": zero,
            "s": zero,
            "steps": zero,
            "norm": norm,
            "residual_norm": norm,
            "norm_A": zero,
            "lowest": norm,
            "floor": zero,
        }

    def step(self, X: Tensor, m: Memory) -> tuple[Tensor, Memory, list[str]]:
        """A Lanczos vector, and a rotation that makes the tridiagonal matrix triangular."""
        Z, c, s, gamma = m["Z"], m["c"], m["s"], m["gamma"]
        AZ = self._times(Z)
        delta = dots(Z, AZ).to(Z.dtype)
        before = gamma * (m["steps"] > 0)  # the first gamma is a norm of b, not of A
        V = AZ - _col(delta) * m["V"] - _col(before) * m["V_old"]
        size = unit(V, 1)  # vᵀ M v is quadratic in A
        V = V / size
        new_Z = self._precondition(V)
        squared = dots(V, new_Z)
        root = squared.clamp(min=0).sqrt().to(V.dtype)
        new_gamma = root * size[:, 0]

        diagonal = c * delta - m["c_old"] * s * gamma
        rho = torch.hypot(diagonal, new_gamma)
        above = s * delta + m["c_old"] * c * gamma
        far_above = m["s_old"] * gamma
        W = divided(Z - _col(far_above) * m["W_old"] - _col(above) * m["W"], rho)
        new_c, new_s = divided(diagonal, rho), divided(new_gamma, rho)
        new_V, new_eta = divided(V, root), -new_s * m["eta"]
        X = X + _col(new_c * m["eta"]) * W
        R = _col(new_s**2) * m["R"] + _col(new_c * new_eta) * new_V

        eps = torch.finfo(self.A.dtype).eps
        norm, size_AZ, size_Z = norms(R), norms(AZ), norms(Z)
        norm_A = torch.maximum(m["norm_A"], size_AZ / size_Z)  # lower bound of ‖A‖
        # residuals cannot grow in the norm of M, unless A is singular up to rounding
        lowest = torch.minimum(m["lowest"], norm)
        floor = eps * norm_A * norms(X)
        if self.M is None:
            floor = torch.where(norm > (1 + eps**0.5) * lowest, torch.inf, floor)
        # the third Lanczos vector is orthogonal to the first, W, if A and M are symmetric
        gap = dots(V, m["W"]).abs() * size[:, 0]
        asymmetric = gap > eps**0.5 * norms(m["W"]) * (size_AZ + norm_A * size_Z)
        words = _words(
            squared < -(eps**0.5) * norms(V) * norms(new_Z),
            (m["steps"] == 1) & asymmetric,
            rho <= 10 * eps * (delta.abs() + before + new_gamma),
        )
        return (
            X,
            {
                "R": R,
                "V_old": m["V"],
                "V": new_V,
                "Z": divided(new_Z, root),
                "W_old": m["W"],
                "W": W,
                "gamma": new_gamma,
                "eta": new_eta,
                "c_old": c,
                "c": new_c,
                "s_old": s,
                "s": new_s,
                "steps": m["steps"] + 1,
                "norm": norm,
                "residual_norm": norm,
                "norm_A": norm_A,
                "lowest": lowest,
                "floor": floor,
            },
            words,
        )

    def _times(self, V: Tensor) -> Tensor:
        return times(self.A, V) - self.shift * V

    def _precondition(self, R: Tensor) -> Tensor:
        return R if self.M is None else times(self.M, R)


def _col(scalars: Tensor) -> Tensor:
    return scalars[:, None]


def _words(indefinite: Tensor, asymmetric: Tensor, singular: Tensor) -> list[str]:
    """The status of columns that cannot take a step; one transfer from the device."""
    table = torch.stack([indefinite, asymmetric, singular], 1).tolist()
    if any(row[0] for row in table):
        raise ValueError(INDEFINITE)
    if any(row[1] for row in table):
        raise ValueError(UNSYMMETRIC)
    return ["singular" if row[2] else "" for row in table]
