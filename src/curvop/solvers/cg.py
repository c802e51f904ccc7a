"""Conjugate gradients."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from curvop.arguments import at_least
from curvop.checkpoint import Checkpoint
from curvop.operators import LinearOperator, Vector
from curvop.solvers.iteration import Memory, Progress, iterate
from curvop.solvers.solution import Solution, solution_of
from curvop.solvers.system import (
    INDEFINITE,
    UNSYMMETRIC,
    System,
    check_number,
    dots,
    norms,
    preconditioner,
    read_system,
    tagged,
    times,
)


def cg(
    A: Any,
    b: Vector,
    *,
    rtol: float = 1e-6,
    atol: float = 0.0,
    maxiter: int | None = None,
    M: Any = None,
    x0: Vector | None = None,
    progressbar: bool = False,
    checkpoint: str | os.PathLike[str] | None = None,
) -> Solution:
    r"""Solve ``A x = b`` for a positive definite ``A`` by conjugate gradients.

    .. math:: \lVert b - A x \rVert ≤ \max(\text{rtol} \, \lVert b \rVert, \text{atol})

    is what ``"converged"`` means, for the residual computed from ``x``. If the residual of
    the recurrence has drifted away from it by rounding, the iteration continues from the
    true one. Columns of ``b`` share each product and converge independently.

    A direction ``d`` with ``dᵀ A d < 0`` ends a column; the solution then has this
    direction and the iterate before it, from which to descend along ``d`` (Steihaug, 1983).
    Pass ``assume_psd(H)`` to find such a direction of an indefinite matrix.

    With a checkpoint, a run that was killed and is started again with the same arguments
    gives the same result, bit for bit on the CPU. ``maxiter`` may differ, to continue.

    Args:
        A: The matrix ``[N, N]``: an operator tagged ``psd``; see
            :func:`~curvop.assume_psd` for others.
        b: Right-hand sides: ``[N]``, ``[N, K]``, blocks, or a dict of blocks.
        rtol: Tolerance relative to ``‖b‖``.
        atol: Absolute tolerance.
        maxiter: Most iterations; ``100 N`` by default, since rounding delays convergence.
        M: Preconditioner, close to ``A⁻¹``: an operator tagged ``psd``. See
            :func:`~curvop.jacobi_preconditioner`, :func:`~curvop.nystrom_preconditioner`.
        x0: Where to start from, in the form of ``b``; zero by default.
        progressbar: Whether to show the residual in a bar.
        checkpoint: File to write the state to every few products, and to continue from.

    Returns:
        The solution, with ``x`` in the form of ``b``.

    Raises:
        TypeError: If something is of the wrong kind or dtype.
        ValueError: If something does not fit, ``A`` is not tagged or turns out not to be
            symmetric, or the checkpoint is of another problem.
        FloatingPointError: If a product is not finite.

    References:
        Hestenes and Stiefel, "Methods of conjugate gradients for solving linear systems",
        1952. Van der Vorst and Ye, "Residual replacement strategies", 2000.

    >>> from curvop import assume_psd, cg
    >>> A = assume_psd(torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    >>> cg(A, torch.tensor([3.0, 3.0])).x
    tensor([1., 1.])
    """
    A = tagged(A, "cg", "psd")
    M = preconditioner(M, A)
    system = read_system(A, b, x0)
    rtol, atol = check_number("rtol", rtol), check_number("atol", atol)
    maxiter = 100 * A.shape[1] if maxiter is None else at_least(1, "maxiter", maxiter)
    run = iterate(
        ConjugateGradients(A, system.B, M, shifts=torch.zeros_like(system.B[:, 0])),
        system.X,
        tolerances=system.tolerances(norms(system.B), rtol, atol),
        maxiter=maxiter,
        name="cg",
        progressbar=progressbar,
        file=_file(checkpoint, A, M, system, rtol, atol),
    )
    return solution_of(system, run, direction_of(run))


def _file(
    path: str | os.PathLike[str] | None,
    A: LinearOperator,
    M: LinearOperator | None,
    system: System,
    rtol: float,
    atol: float,
) -> Checkpoint:
    """The checkpoint of this problem, without ``maxiter``: a run may be continued."""
    if path is None:
        return Checkpoint(None)
    problem = {
        "the algorithm": "cg",
        "rtol": rtol,
        "atol": atol,
        "b": system.rescaled(system.B),
        "x0": system.rescaled(system.X),
        "M": None if M is None else times(M, torch.ones_like(system.X[:1])),
    }
    return Checkpoint(path, A, problem)


@dataclass(frozen=True)
class ConjugateGradients:
    """``(A + σ I) x = b`` for each row ``b`` of ``B`` with its own ``σ``."""

    A: LinearOperator
    B: Tensor  # [K, N]
    M: LinearOperator | None
    shifts: Tensor  # [K]

    def start(self, rows: list[int], X: Tensor) -> Memory:
        """The first direction is the preconditioned residual."""
        shift = self.shifts[rows]
        R = self.B[rows]
        if bool(X.any()):
            R = R - times(self.A, X) - shift[:, None] * X
        Z = self._precondition(R)
        zero, norm = torch.zeros_like(shift), norms(R)
        return {
            "R": R,
            "P": Z,
            "rho": dots(R, Z),
            "shift": shift,
            "steps": zero,
            "norm": norm,
            "residual_norm": norm,
            "norm_A": zero,
            "floor": zero,
        }

    def step(self, X: Tensor, m: Memory) -> tuple[Tensor, Memory, list[str]]:
        """Minimise along ``P``; make the next one conjugate to it."""
        R, P, rho, shift = m["R"], m["P"], m["rho"], m["shift"]
        AP = times(self.A, P) + shift[:, None] * P
        size_P, size_AP = norms(P), norms(AP)
        # of unit size, since pᵀ A p is quadratic in M and may over- or underflow
        curvature = (P / size_P[:, None] * AP).sum(1).double()
        alpha = (rho / size_P / curvature).to(X.dtype)[:, None]
        X = X + alpha * P
        new_R = R - alpha * AP
        Z = self._precondition(new_R)
        new_rho = dots(new_R, Z)
        beta = (new_rho / rho).to(X.dtype)[:, None]

        norm, norm_A = norms(new_R), torch.maximum(m["norm_A"], size_AP / size_P)
        eps = torch.finfo(self.A.dtype).eps
        # consecutive residuals are orthogonal if A and M are symmetric, also where
        # rounding has made earlier ones lose orthogonality
        most = eps**0.5 * size_P * (m["norm"] + alpha[:, 0].abs() * norm_A * size_P)
        asymmetric = (m["steps"] == 1) & (dots(Z, R).abs() > most)
        noise = 10 * eps * norm_A * size_P
        words = _words(rho, asymmetric, curvature, noise)
        return (
            X,
            {
                "R": new_R,
                "P": Z + beta * P,
                "rho": new_rho,
                "shift": shift,
                "steps": m["steps"] + 1,
                "norm": norm,
                "residual_norm": norm,
                "norm_A": norm_A,
                "floor": eps * norm_A * norms(X),
            },
            words,
        )

    def _precondition(self, R: Tensor) -> Tensor:
        return R if self.M is None else times(self.M, R)


def _words(rho: Tensor, asymmetric: Tensor, curvature: Tensor, noise: Tensor) -> list[str]:
    """The status of columns that cannot take a step; one transfer from the device."""
    table = torch.stack([rho, asymmetric.to(rho.dtype), curvature, noise], 1).tolist()
    words = []
    for rho_k, asymmetric_k, curvature_k, noise_k in table:
        if rho_k <= 0:
            raise ValueError(INDEFINITE)
        if asymmetric_k:
            raise ValueError(UNSYMMETRIC)
        if curvature_k > 0 or not math.isfinite(noise_k):
            words.append("")  # if not finite, the check of the residual raises
        else:
            words.append("singular" if curvature_k >= -noise_k else "negative curvature")
    return words


def direction_of(run: Progress) -> Tensor | None:
    """The last direction of the columns that met one without positive curvature."""
    met = [status in ("singular", "negative curvature") for status in run.statuses]
    if not any(met):
        return None
    P = run.memory["P"]
    which = torch.tensor(met, device=P.device)[:, None]
    return torch.where(which, P / norms(P)[:, None], 0.0)
