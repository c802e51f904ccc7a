"""One measurement of the curvature: eigenvalues, trace, alignment."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from curvop.curvature import CurvatureLinearOperator
from curvop.estimate import Estimate
from curvop.estimators import trace
from curvop.operators import (
    DiagonalLinearOperator,
    IdentityLinearOperator,
    LinearOperator,
    LowRankLinearOperator,
    assume_symmetric,
)
from curvop.risk import loss_and_gradient
from curvop.spectra import Eigenpairs, eigsh


@dataclass(frozen=True)
class Plan:
    """What a measurement consists of."""

    k: int  # number of eigenvalues
    num_probes: int  # random vectors for the trace; zero for none
    tol: float  # residual of an eigenpair, relative to the norm of the matrix
    maxiter: int  # products at most for eigenpairs, and for the preconditioned as many


@dataclass(frozen=True)
class Measurement:
    """What was found, with the vectors that the next one starts from."""

    loss: float
    gradient_norm: float
    alignment: float
    pairs: Eigenpairs
    trace: Estimate | None
    preconditioned: Eigenpairs | None

    @property
    def num_matvecs(self) -> int:
        """Number of products of all parts."""
        parts = [self.pairs, self.trace, self.preconditioned]
        return sum(part.num_matvecs for part in parts if part is not None)


def measure(
    H: CurvatureLinearOperator,
    plan: Plan,
    generator: Generator,
    *,
    previous: Measurement | None = None,
    P: Tensor | None = None,
    allowance: float = math.inf,
) -> Measurement | None:
    """Measure at the present parameters, starting from where the last one ended.

    Args:
        H: The matrix.
        plan: What to measure.
        generator: Source of random vectors.
        previous: The last measurement.
        P: Diagonal of a preconditioner ``[N]``.
        allowance: Most products for eigenpairs, as a multiple of what they took before.

    Returns:
        What was found; ``None`` if loss or gradient are not finite.

    Raises:
        KeyboardInterrupt: On Ctrl-C.
    """
    loss, g = loss_and_gradient(H.risk)
    if not math.isfinite(loss) or not bool(g.isfinite().all()):
        return None
    before = None if previous is None else previous.pairs
    limit = allowance * before.num_matvecs if before is not None else math.inf
    pairs = _largest(H, plan.k, limit, plan, generator, before)
    preconditioned = None
    if P is not None:
        root = DiagonalLinearOperator(P.to(H.dtype).rsqrt())
        scaled = assume_symmetric(root @ H @ root)
        before = None if previous is None else previous.preconditioned
        if before is not None:
            limit = allowance * before.num_matvecs
        preconditioned = _largest(scaled, 1, limit, plan, generator, before)
    norm = float(g.norm())
    along = float((pairs.vectors.T @ g).norm())
    return Measurement(
        loss,
        norm,
        (along / norm) ** 2 if norm else math.nan,
        pairs,
        _trace(H, pairs, plan.num_probes, generator),
        preconditioned,
    )


def _largest(
    A: LinearOperator,
    k: int,
    limit: float,
    plan: Plan,
    generator: Generator,
    previous: Eigenpairs | None,
) -> Eigenpairs:
    """The largest eigenpairs, by block Lanczos from those before.

    Lanczos rather than LOBPCG, which takes half the products here: it looks for missed
    eigenvalues before it ends, and would notice one that has overtaken those tracked.
    """
    if previous is not None and len(previous.values) < k:  # the products did not suffice
        previous = None
    pairs = eigsh(
        A,
        k,
        which="LA",
        tol=plan.tol,
        v0=None if previous is None else previous.vectors,
        block_size=k,
        maxiter=int(min(plan.maxiter, max(limit, 3 * k))),
        generator=generator,
    )
    if pairs.status == "interrupted":  # eigsh would rather return what it has
        raise KeyboardInterrupt
    return pairs


def _trace(
    H: LinearOperator, pairs: Eigenpairs, num_probes: int, generator: Generator
) -> Estimate | None:
    r"""``tr QᵀHQ + tr (I - QQᵀ) H (I - QQᵀ)``, the latter estimated.

    The eigenvectors need not have converged: their values are those of ``QᵀHQ``.
    """
    if num_probes == 0:
        return None
    Q = LowRankLinearOperator(pairs.vectors)
    rest = IdentityLinearOperator.like(Q) - Q
    found = trace(
        rest @ H @ rest, method="hutchinson", num_matvecs=num_probes, generator=generator
    )
    value = float(pairs.values.double().sum()) + found.value
    return Estimate(value, found.standard_error, found.num_matvecs)


def descending(values: Tensor) -> tuple[float, ...]:
    """Ascending numbers, the largest first."""
    return tuple(torch.flip(values.detach().cpu().double(), [0]).tolist())
