"""Cases: operators, each with a dense truth that was found in another way."""

from tests.cases import curvature, direct, inverses, linearized, structured
from tests.cases.case import Case

CASES: tuple[Case, ...] = (
    *structured.cases(),
    *inverses.cases(),
    *curvature.cases(),
    *direct.cases(),
    *linearized.cases(),
)

__all__ = ["CASES", "Case"]
