"""The smallest eigenvalue, by bisection on the inertia."""

from __future__ import annotations

import torch

from curvop.direct.control import ControlProblem
from curvop.direct.sweep import factorise
from curvop.operators import SingularSystemError


def smallest_eigenvalue(problem: ControlProblem, tol: float) -> float:
    """``λ_min(H)`` to within ``tol · ‖H‖``; a factorisation for each halving."""
    norm = _norm(problem)
    if norm == 0:
        return 0.0
    low, high = -norm, norm
    while _has_below(problem, low):
        low *= 2
    while not _has_below(problem, high):
        high *= 2
    while high - low > tol * norm:
        middle = (low + high) / 2
        if _has_below(problem, middle):
            high = middle
        else:
            low = middle
    return (low + high) / 2


def _has_below(problem: ControlProblem, t: float) -> bool:
    """Whether an eigenvalue is at or below ``t``: then ``H − tI`` is not positive."""
    try:
        return any(step.num_negative for step in factorise(problem, -t))
    except SingularSystemError:
        return True


def _norm(problem: ControlProblem) -> float:
    """The spectral norm, roughly and from below, by the power method."""
    generator = torch.Generator().manual_seed(0)
    v = [
        torch.randn(1, stage.size, generator=generator, dtype=torch.float64)
        for stage in problem.stages
    ]
    v, norm = [part.to(problem.terminal) for part in v], 1.0
    for _ in range(10):
        v = problem.product([part / norm for part in v])
        norm = float(torch.cat(v, 1).norm())
        if norm == 0:
            break
    return norm
