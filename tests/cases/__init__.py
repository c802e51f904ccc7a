"""Cases: operators, each with a dense truth that was found in another way."""

from tests.cases import (
    curvature,
    diagonals,
    direct,
    inverses,
    kronecker,
    linearized,
    lowrank,
    structured,
)
from tests.cases.case import Case

CASES: tuple[Case, ...] = (
    *structured.cases(),
    *inverses.cases(),
    *curvature.cases(),
    *direct.cases(),
    *diagonals.cases(),
    *kronecker.cases(),
    *linearized.cases(),
    *lowrank.cases(),
)

__all__ = ["CASES", "Case"]
