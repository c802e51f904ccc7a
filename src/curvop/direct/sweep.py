"""The Riccati sweep: eliminate the parameters stage by stage, from the loss upstream.

Dunn & Bertsekas ("Efficient dynamic programming implementations of Newton's method for
unconstrained optimal control problems", 1989) and Pantoja ("Differential dynamic
programming and Newton's method", 1988) solve Newton systems of control problems so. With
``P`` the Hessian of the cost of a stage's output, and ``P = Φ`` at the loss,

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

from curvop.direct.complement import Complement
from curvop.direct.control import ControlProblem
from curvop.direct.memory import check_growth
from curvop.direct.pivots import Pivot, eliminate
from curvop.direct.stages import ControlledStage, Stage

# A pivot is delayed if it would add to the cost of the state more than GROWTH times the
# largest entry of the Hessian of the loss in the state. Smaller values delay more, which
# takes memory and time; larger ones lose digits, first those of the determinant.
GROWTH = 1e2
# For every size of that entry, an addition may change the pivots upstream by GROWTH · FLOOR
# times the damping: its rounding is far below the damping.
FLOOR = 1e5


class Cost(NamedTuple):
    """Cost of a state and of delayed variables: ``½ uᵀPu + yᵀNu + ½ yᵀDy``.

    Attributes:
        P: ``[a, a]``.
        N: ``[k, a]``.
        D: Diagonal, ``[k]``.
    """

    P: Tensor
    N: Tensor
    D: Tensor


class Step(ABC):
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
    def backward(self, p: Tensor, q: Tensor, g: Tensor) -> tuple[Any, Tensor, Tensor]:
        """From right-hand sides at the output to those at the input.

        Args:
            p: That of the state: the cost has the term ``pᵀu``.
            q: That of the delayed variables: the cost has the term ``−qᵀy``.
            g: That of the parameters.

        Returns:
            A value for :meth:`forward`; ``p`` and ``q`` at the input.
        """

    @abstractmethod
    def forward(self, saved: Any, u: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Parameters; then state and delayed variables at the output."""


def factorise(
    problem: ControlProblem, damping: float, growth: float = GROWTH
) -> tuple[Step, ...]:
    """Eliminate all stages of ``H + εI``; the steps are in the order of the chain.

    Raises:
        SingularSystemError: If a pivot is singular.
        ValueError: If the factors exceed the memory limit.
    """
    Φ = problem.terminal
    cost, nbytes = Cost(Φ, Φ[:0], Φ.new_zeros(0)), 0
    steps: list[Step] = []
    parts = zip(problem.stages, problem.scales, problem.reaches, strict=True)
    for stage, scale, reach in reversed(list(parts)):
        step: Step
        if isinstance(stage, ControlledStage) and stage.size:
            check_growth(nbytes, stage, len(cost.D), problem.memory_limit)
            floor = FLOOR * abs(damping) / max(reach, 1e-300)
            threshold = growth * max(scale, floor)
            step, cost = _eliminate(stage, cost, damping, threshold)
        else:
            step = _Passage(stage)
            cost = Cost(stage.congruence(cost.P), stage.pull(cost.N), cost.D)
        nbytes += step.nbytes
        steps.append(step)
    return tuple(steps[::-1])


def solve(
    problem: ControlProblem, steps: tuple[Step, ...], b: Sequence[Tensor]
) -> list[Tensor]:
    """``x`` with ``(H + εI) x = b``."""
    p = b[0].new_zeros(len(b[0]), len(problem.terminal))
    q = p[:, :0]
    saved, x = [], []
    for step, g in zip(steps[::-1], b[::-1], strict=True):
        kept, p, q = step.backward(p, q, g)
        saved.append(kept)
    u, y = p, q  # no entries: nothing is upstream
    for step, kept in zip(steps, saved[::-1], strict=True):
        part, u, y = step.forward(kept, u, y)
        x.append(part)
    return x


def _eliminate(
    stage: ControlledStage, cost: Cost, damping: float, threshold: float
) -> tuple[Step, Cost]:
    P, N, D = cost
    M, G = stage.pivot(P)
    M.diagonal().add_(damping)
    num_own = len(M)
    if len(D):  # delayed variables are eliminated together with the parameters
        NB = stage.pull_coordinates(N)
        M = torch.cat([torch.cat([M, NB.T], 1), torch.cat([NB, D.diag()], 1)])
        G = torch.cat([G, stage.pull(N)])
    pivot, correction, N, D = eliminate(_symmetric(M), G, threshold, stage.name)
    P = stage.congruence(P) - correction
    rest = stage.complement(damping, threshold)
    if rest is not None:
        P = P - rest.correction()
        N_rest, D_rest = rest.delayed()
        N, D = torch.cat([N, N_rest]), torch.cat([D, D_rest])
    return _Elimination(stage, pivot, rest, num_own), Cost(_symmetric(P), N, D)


def _symmetric(P: Tensor) -> Tensor:
    return (P + P.T) / 2


@final
class _Passage(Step):
    """A stage without parameters."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.num_negative, self.logabsdet, self.nbytes = 0, 0.0, 0

    def backward(self, p: Tensor, q: Tensor, g: Tensor) -> tuple[Any, Tensor, Tensor]:
        return g, self._stage.pull(p), q

    def forward(self, saved: Any, u: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return saved, self._stage.push(u, saved), y


@final
class _Elimination(Step):
    """A stage whose parameters are eliminated, with those delayed downstream."""

    def __init__(
        self, stage: ControlledStage, pivot: Pivot, rest: Complement | None, num_own: int
    ) -> None:
        self._stage, self._pivot, self._rest, self._num_own = stage, pivot, rest, num_own
        parts = (pivot,) if rest is None else (pivot, rest)
        self.num_negative = sum(part.num_negative for part in parts)
        self.logabsdet = sum(part.logabsdet for part in parts)
        self.nbytes = sum(part.nbytes for part in parts)

    def backward(self, p: Tensor, q: Tensor, g: Tensor) -> tuple[Any, Tensor, Tensor]:
        stage = self._stage
        seen = stage.coordinates(g)
        h = torch.cat([seen - stage.pull_coordinates(p), q], 1)
        saved, dp, late = self._pivot.backward(h)
        p = stage.pull(p) + dp
        if self._rest is not None:
            dp, unseen = self._rest.backward(g, seen)
            p, late = p + dp, torch.cat([late, unseen], 1)
        return (saved, g), p, late

    def forward(self, saved: Any, u: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stage, (seen, g), num_late = self._stage, saved, self._pivot.num_late
        ξ = self._pivot.forward(seen, u, y[:, :num_late])
        ξ, joined = ξ[:, : self._num_own], ξ[:, self._num_own :]
        rest = None if self._rest is None else self._rest.forward(g, u, y[:, num_late:])
        x = stage.parameters(ξ, rest)
        return x, stage.push(u, x), joined
