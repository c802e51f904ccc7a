"""Block elimination: the parameters stage by stage, from the loss upstream.

Dunn & Bertsekas ("Efficient dynamic programming implementations of Newton's method for
unconstrained optimal control problems", 1989) and Pantoja ("Differential dynamic
programming and Newton's method", 1988) solve Newton systems of control problems so. With
``P`` the Schur complement in a stage's output, and ``P = Φ`` at the loss,

    M = R + εI + BᵀPB      G = S + BᵀPA      P_in = Q + AᵀPA − GᵀM⁻¹G .

The ``M`` are the pivots of a block ``LDLᵀ`` of the whole matrix, hence its inertia and
its determinant. Variables ``y`` whose elimination was delayed are carried on, with the cost
``yᵀNu + ½ yᵀDy``, and join the ``x`` of the next stage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from curvop.direct.memory import check_growth
from curvop.direct.newton_system import NewtonSystem
from curvop.direct.pivots import NullSpacePivot, Pivot, eliminate
from curvop.direct.stages import ParametricStage, Stage

# A pivot is delayed if it would add to the cost of the state more than GROWTH times the
# largest entry of the Hessian of the loss in the state. Smaller values delay more, which
# takes memory and time; larger ones lose digits, first those of the determinant.
GROWTH = 1e2
# For every size of that entry, an addition may change the pivots upstream by GROWTH · FLOOR
# times the damping: its rounding is far below the damping.
FLOOR = 1e5


class SchurComplement(NamedTuple):
    """In a state and in delayed variables: the cost ``½ uᵀPu + yᵀNu + ½ yᵀDy``.

    Attributes:
        P: ``[a, a]``.
        N: ``[k, a]``.
        D: Diagonal, ``[k]``.
    """

    P: Tensor
    N: Tensor
    D: Tensor


class Elimination(ABC):
    """One stage, eliminated; applied to right-hand sides.

    Attributes:
        num_negative: Number of negative eigenvalues of the pivots.
        logabsdet: Logarithm of their absolute determinant.
        nbytes: Bytes that are kept.
    """

    num_negative: int
    logabsdet: float
    nbytes: int

    @abstractmethod
    def eliminate(self, p: Tensor, q: Tensor, g: Tensor) -> tuple[Any, Tensor, Tensor]:
        """From right-hand sides at the output to those at the input.

        Args:
            p: That of the state: the cost has the term ``pᵀu``.
            q: That of the delayed variables: the cost has the term ``−qᵀy``.
            g: That of the parameters.

        Returns:
            A value for :meth:`substitute`; ``p`` and ``q`` at the input.
        """

    @abstractmethod
    def substitute(self, saved: Any, u: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Parameters; then state and delayed variables at the output."""


def factorise(
    system: NewtonSystem, damping: float, growth: float = GROWTH
) -> tuple[Elimination, ...]:
    """Eliminate all stages of ``H + εI``; the steps are in the order of the chain.

    Raises:
        SingularSystemError: If a pivot is singular.
        ValueError: If the factors exceed the memory limit.
    """
    Φ = system.loss_hessian
    schur, nbytes = SchurComplement(Φ, Φ[:0], Φ.new_zeros(0)), 0
    steps: list[Elimination] = []
    parts = zip(system.stages, system.scales, system.reaches, strict=True)
    for stage, scale, reach in reversed(list(parts)):
        step: Elimination
        if isinstance(stage, ParametricStage) and stage.size:
            check_growth(nbytes, stage, len(schur.D), system.memory_limit)
            floor = FLOOR * abs(damping) / max(reach, 1e-300)
            threshold = growth * max(scale, floor)
            step, schur = _eliminate(stage, schur, damping, threshold)
        else:
            step = _Passage(stage)
            schur = SchurComplement(stage.congruence(schur.P), stage.vjp(schur.N), schur.D)
        nbytes += step.nbytes
        steps.append(step)
    return tuple(steps[::-1])


def solve(
    system: NewtonSystem, steps: tuple[Elimination, ...], b: Sequence[Tensor]
) -> list[Tensor]:
    """``x`` with ``(H + εI) x = b``."""
    p = b[0].new_zeros(len(b[0]), len(system.loss_hessian))
    q = p[:, :0]
    saved, x = [], []
    for step, g in zip(steps[::-1], b[::-1], strict=True):
        kept, p, q = step.eliminate(p, q, g)
        saved.append(kept)
    u, y = p, q  # no entries: nothing is upstream
    for step, kept in zip(steps, saved[::-1], strict=True):
        part, u, y = step.substitute(kept, u, y)
        x.append(part)
    return x


def _eliminate(
    stage: ParametricStage, schur: SchurComplement, damping: float, threshold: float
) -> tuple[Elimination, SchurComplement]:
    P, N, D = schur
    M, G = stage.pivot(P)
    M.diagonal().add_(damping)
    num_own = len(M)
    if len(D):  # delayed variables are eliminated together with the parameters
        NB = stage.vjp_coordinates(N)
        M = torch.cat([torch.cat([M, NB.T], 1), torch.cat([NB, D.diag()], 1)])
        G = torch.cat([G, stage.vjp(N)])
    pivot, correction, N, D = eliminate(_symmetric(M), G, threshold, stage.name)
    P = stage.congruence(P) - correction
    null = stage.null_space_pivot(damping, threshold)
    if null is not None:
        P = P - null.correction()
        N_null, D_null = null.delayed()
        N, D = torch.cat([N, N_null]), torch.cat([D, D_null])
    return _Pivoted(stage, pivot, null, num_own), SchurComplement(_symmetric(P), N, D)


def _symmetric(P: Tensor) -> Tensor:
    return (P + P.T) / 2


@final
class _Passage(Elimination):
    """A stage without parameters."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.num_negative, self.logabsdet, self.nbytes = 0, 0.0, 0

    def eliminate(self, p: Tensor, q: Tensor, g: Tensor) -> tuple[Any, Tensor, Tensor]:
        return g, self._stage.vjp(p), q

    def substitute(self, saved: Any, u: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return saved, self._stage.jvp(u, saved), y


@final
class _Pivoted(Elimination):
    """A stage whose parameters are eliminated, with those delayed downstream."""

    def __init__(
        self,
        stage: ParametricStage,
        pivot: Pivot,
        null: NullSpacePivot | None,
        num_own: int,
    ) -> None:
        self._stage, self._pivot, self._null, self._num_own = stage, pivot, null, num_own
        parts = (pivot,) if null is None else (pivot, null)
        self.num_negative = sum(part.num_negative for part in parts)
        self.logabsdet = sum(part.logabsdet for part in parts)
        self.nbytes = sum(part.nbytes for part in parts)

    def eliminate(self, p: Tensor, q: Tensor, g: Tensor) -> tuple[Any, Tensor, Tensor]:
        stage = self._stage
        seen = stage.coordinates(g)
        h = torch.cat([seen - stage.vjp_coordinates(p), q], 1)
        saved, dp, delayed = self._pivot.eliminate(h)
        p = stage.vjp(p) + dp
        if self._null is not None:
            dp, unseen = self._null.eliminate(g, seen)
            p, delayed = p + dp, torch.cat([delayed, unseen], 1)
        return (saved, g), p, delayed

    def substitute(self, saved: Any, u: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stage, (seen, g), num_delayed = self._stage, saved, self._pivot.num_delayed
        ξ = self._pivot.substitute(seen, u, y[:, :num_delayed])
        ξ, joined = ξ[:, : self._num_own], ξ[:, self._num_own :]
        unseen = None
        if self._null is not None:
            unseen = self._null.substitute(g, u, y[:, num_delayed:])
        x = stage.parameters(ξ, unseen)
        return x, stage.jvp(u, x), joined
