"""Every loss with its options: the diagonal is that of the loss over all data."""

from __future__ import annotations

from typing import Any

import pytest

from curvop import (
    EFDiagonalLinearOperator,
    GGNDiagonalLinearOperator,
    HessianDiagonalLinearOperator,
)
from tests.comparing import TOLERANCE, error
from tests.curvature import dense, loss_cases

DIAGONALS: dict[str, Any] = {
    "ggn": GGNDiagonalLinearOperator,
    "ef": EFDiagonalLinearOperator,
    "hessian": HessianDiagonalLinearOperator,
}
# uneven, the data out of order; in the first batch some or all targets are ignored
PARTS = ([0], [3, 6, 1], [2, 4, 5])
TRIPLES = [
    (name, case) for case in loss_cases.CASES for name in DIAGONALS if case.has(name)
]


@pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")
@pytest.mark.parametrize(
    ("name", "case"), TRIPLES, ids=[f"{name}-{case.name}" for name, case in TRIPLES]
)
def test_losses(name: str, case: loss_cases.LossCase) -> None:
    model = case.model
    D = DIAGONALS[name](
        model,
        case.loss,
        list(model.parameters()),
        dense.batches(loss_cases.X, case.y, PARTS),
        reduction=case.reduction,
        check_deterministic=False,
    )
    assert error(D.diagonal(), loss_cases.truth(name, case).diagonal()) <= TOLERANCE
