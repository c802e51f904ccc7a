"""The factor form for every loss with its options, in unequal mini-batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.curvature import dense
from tests.curvature.loss_cases import CASES, LossCase, N, X, operator, truth

# torch announces that the mean of kl_div will change
pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")

PARTS = ((0, 1), (5,), (2, 4, 3, 6))  # the first part is ignored where targets can be
PAIRS = [
    pytest.param(name, case, id=f"{name}-{case.name}")
    for name in ("ggn", "ef")
    for case in CASES
    if case.has(name)
]


def is_convex(case: LossCase) -> bool:
    """Whether the Hessian of the loss in the prediction has no negative eigenvalue."""
    f = case.model(X)
    leaves = [t.detach().requires_grad_() for t in ([f] if isinstance(f, Tensor) else f)]
    value = case.scalar(leaves[0] if isinstance(f, Tensor) else tuple(leaves), case.y)
    (gradient,) = dense.rows(value[None], leaves)
    values = torch.linalg.eigvalsh(dense.rows(gradient, leaves).detach())
    return float(values.min()) >= -1e-12 * float(values.abs().max())


@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_equals_dense(name: str, case: LossCase) -> None:
    G = operator(name, case, PARTS, "func", num_data=N, check_deterministic=False)
    if name == "ggn" and not is_convex(case):
        with pytest.raises(ValueError, match=r"not convex.*Multiply with the operator"):
            G.factor()
        return
    A, D = G.factor(), truth(name, case)
    assert dense.relative_error(A.to_dense(), D) <= 1e-8
    V = A.V.to_dense()
    assert dense.relative_error(V @ V.T, D) <= 1e-8
    assert dense.relative_error(A.gram(), V.T @ V) <= 1e-8


def test_losses_of_both_kinds_are_among_them() -> None:
    convex = [is_convex(case) for case in CASES]
    assert sum(convex) > 200
    assert convex.count(False) > 5
