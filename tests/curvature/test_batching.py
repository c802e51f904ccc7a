"""However the data is cut into mini-batches, the matrix is that of all data."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from . import dense
from .loss_cases import CASES, LossCase, N, operator, truth

# torch announces that the mean of kl_div will change
pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")

WAYS = ("func", "backpack")
Parts = list[list[int]]


@st.composite
def partitions(draw: st.DrawFn) -> Parts:
    """The data in any order, cut anywhere."""
    order = draw(st.permutations(range(N)))
    cuts = sorted(draw(st.sets(st.integers(1, N - 1))))
    return [order[i:j] for i, j in zip([0, *cuts], [*cuts, N], strict=True)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@given(partitions())
@example([[0, 1], [2, 3, 4, 5, 6]])  # every target of the first batch may be ignored
@settings(max_examples=3, deadline=None, derandomize=True, database=None)
def test_partitions(case: LossCase, parts: Parts) -> None:
    v = dense.normal(case.model.weight.numel() + case.model.bias.numel(), 2)
    for name in filter(case.has, ("hessian", "ggn", "ef")):
        for way in WAYS:
            A = operator(name, case, parts, way, check_deterministic=False)
            assert dense.relative_error(A @ v, truth(name, case) @ v) <= 1e-8
