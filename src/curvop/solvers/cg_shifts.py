"""Conjugate gradients for a family of dampings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from curvop.arguments import at_least
from curvop.checkpoint import Checkpoint
from curvop.operators import LinearOperator, Vector
from curvop.solvers.cg import ConjugateGradients, direction_of
from curvop.solvers.iteration import Progress, iterate
from curvop.solvers.solution import Solution, solution_of
from curvop.solvers.system import (
    NOT_FINITE,
    UNSYMMETRIC,
    System,
    check_number,
    dots,
    norms,
    read_system,
    tagged,
    times,
)


def cg_shifts(
    A: Any,
    b: Vector,
    shifts: Sequence[float] | Tensor,
    *,
    rtol: float = 1e-6,
    atol: float = 0.0,
    maxiter: int | None = None,
    progressbar: bool = False,
) -> Solution:
    r"""Solve ``(A + λ I) x = b`` for many dampings ``λ``, from one Krylov space.

    .. math:: \lVert b - (A + λ I) x_λ \rVert ≤ \max(\text{rtol} \, \lVert b \rVert,
        \text{atol}) \quad \text{for each } λ

    Krylov spaces do not depend on ``λ``, and the residuals of all dampings are multiples
    of that of the smallest, so that the whole path takes as many products as its slowest
    system. At the end one product with all solutions gives the true residuals; systems that
    rounding has left above the tolerance are continued one by one.

    Memory: two vectors for each damping.

    Args:
        A: The matrix ``[N, N]``: an operator tagged ``psd``; see
            :func:`~curvop.assume_psd` for others.
        b: Right-hand side: ``[N]``, blocks, or a dict of blocks.
        shifts: The dampings ``λ ≥ 0``, added to the diagonal.
        rtol: Tolerance relative to ``‖b‖``.
        atol: Absolute tolerance.
        maxiter: Most iterations; ``100 N`` by default, since rounding delays convergence.
        progressbar: Whether to show the residual in a bar.

    Returns:
        The solutions as columns, ``[N, len(shifts)]`` or blocks ``[*n_i, len(shifts)]``,
        in the order of the dampings, with a status and a residual for each.

    Raises:
        TypeError: If something is of the wrong kind or dtype.
        ValueError: If something does not fit, a damping is negative, or ``A`` is not
            tagged or turns out not to be symmetric.
        FloatingPointError: If a product is not finite.

    References:
        Jegerlehner, "Krylov space solvers for shifted linear systems", 1996; Frommer and
        Maass, "Fast CG-based methods for Tikhonov-Phillips regularization", 1999.

    >>> from curvop import assume_psd, cg_shifts
    >>> A = assume_psd(torch.tensor([[2.0, 0.0], [0.0, 4.0]]))
    >>> cg_shifts(A, torch.tensor([4.0, 8.0]), [0.0, 2.0]).x
    tensor([[2.0000, 1.0000],
            [2.0000, 1.3333]])
    """
    A = tagged(A, "cg_shifts", "psd")
    dampings = _dampings(shifts)
    system = _for_each(read_system(A, b), len(dampings))
    rtol, atol = check_number("rtol", rtol), check_number("atol", atol)
    maxiter = 100 * A.shape[1] if maxiter is None else at_least(1, "maxiter", maxiter)
    lambdas = torch.tensor(dampings, dtype=system.B.dtype, device=A.device)
    tolerances = system.tolerances(norms(system.B), rtol, atol)
    with torch.no_grad():
        X, history, interrupted = _shared(
            A, system.B[:1], lambdas, tolerances[0], maxiter, progressbar
        )
    done = len(history) - 1
    if interrupted:
        return solution_of(system, Progress.at(X, "interrupted", history))
    run = iterate(
        ConjugateGradients(A, system.B, None, lambdas),
        X,
        tolerances=tolerances,
        maxiter=maxiter - done,
        name="cg_shifts",
        progressbar=progressbar,
        file=Checkpoint(None),
    )
    run = replace(run, iteration=done + run.iteration, history=history[:-1] + run.history)
    return solution_of(system, run, direction_of(run))


def _dampings(shifts: Sequence[float] | Tensor) -> list[float]:
    values = torch.as_tensor(shifts, dtype=torch.float64)
    if values.ndim != 1:
        raise ValueError(f"Expected shifts [S], got shape {tuple(values.shape)}.")
    if not len(values):
        raise ValueError("Expected at least one shift, got none.")
    return [check_number("each shift", shift) for shift in values.tolist()]


def _for_each(system: System, S: int) -> System:
    """The same right-hand side once for each damping; the solutions are columns."""
    if not system.form.is_vector:
        raise ValueError(
            f"Expected one right-hand side for all shifts, got {system.num_columns} "
            "columns. Call cg_shifts for each, or cg with one damping for all columns."
        )
    return replace(
        system,
        B=system.B.expand(S, -1),
        X=system.X.expand(S, -1),
        scale=system.scale.expand(S),
        form=replace(system.form, is_vector=False),
    )


def _shared(
    A: LinearOperator,
    B: Tensor,
    lambdas: Tensor,
    tolerance: float,
    maxiter: int,
    progressbar: bool,
) -> tuple[Tensor, list[list[float]], bool]:
    """Solutions for all dampings by the recurrences, their norms, and whether to stop.

    The residual for ``λ`` is ``ζ`` times that for the smallest, ``λ₀``.
    """
    R, P = B, B.expand(len(lambdas), -1)  # [1, N], [S, N]
    X, zeta, ratio = torch.zeros_like(P), torch.ones_like(lambdas), torch.ones_like(lambdas)
    seed = int(lambdas.argmin())
    above = lambdas - lambdas[seed]
    rho = float(norms(R)) ** 2
    back, norm_A, eps = 0.0, 0.0, torch.finfo(A.dtype).eps
    history = [[math.sqrt(rho)] * len(lambdas)]
    bar = tqdm(desc="cg_shifts", unit=" iterations", disable=not progressbar)
    try:
        with bar:
            while len(history) <= maxiter and max(history[-1]) > tolerance:
                D = P[seed : seed + 1]
                AD = times(A, D) + lambdas[seed] * D
                curvature = float(dots(D, AD))
                if not math.isfinite(curvature):
                    raise FloatingPointError(NOT_FINITE.format(len(history)))
                if curvature <= 0:
                    break  # cg gives the status
                alpha = rho / curvature
                new_ratio = 1 / (1 + above * alpha + alpha * back * (1 - ratio))
                new_X = X + (alpha * new_ratio)[:, None] * P
                new_R = R - alpha * AD
                new_rho = float(norms(new_R)) ** 2
                size = float(norms(D))
                norm_A = max(norm_A, float(norms(AD)) / size)
                most = eps**0.5 * size * (math.sqrt(rho) + alpha * norm_A * size)
                if len(history) == 2 and abs(float((new_R * R).sum())) > most:
                    raise ValueError(UNSYMMETRIC)
                zeta = zeta * new_ratio
                beta = new_rho / rho
                P = zeta[:, None] * new_R + (beta * new_ratio**2)[:, None] * P
                X, R, rho, ratio, back = new_X, new_R, new_rho, new_ratio, beta / alpha
                history.append((zeta * math.sqrt(rho)).tolist())
                bar.set_postfix_str(f"residual {max(history[-1]):.1e}", refresh=False)
                bar.update()
                if math.sqrt(rho) <= eps * norm_A * float(norms(X[seed : seed + 1])):
                    break  # rounding hides the residual
    except KeyboardInterrupt:
        return X, history, True
    return X, history, False
