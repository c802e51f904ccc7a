"""Every loss, in unequal mini-batches, against the dense matrices of all data."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvop import HessianLinearOperator
from tests.curvature import dense
from tests.curvature.loss_cases import (
    CASES,
    LABELS,
    POSITIONS,
    REAL,
    SOFT,
    WEIGHT,
    C,
    LossCase,
    N,
    T,
    TemperedEntropy,
    X,
    ignored,
    operator,
    truth,
)

# torch announces that the mean of kl_div will change
pytestmark = pytest.mark.filterwarnings("ignore:reduction. 'mean' divides:UserWarning")

WAYS = ("func", "backpack")
NAMES = ("hessian", "ggn", "ef")
PARTS = ((0, 1), (5,), (2, 4, 3, 6))  # the first part is ignored where targets can be
PAIRS = [
    pytest.param(name, case, id=f"{name}-{case.name}")
    for name in NAMES
    for case in CASES
    if case.has(name)
]


def test_names_of_cases_are_unique() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_equals_dense(name: str, case: LossCase, way: str) -> None:
    is_checked = way == "backpack"  # where it costs less
    A = operator(name, case, PARTS, way, num_data=N, check_deterministic=is_checked)
    B = truth(name, case)
    assert dense.relative_error(A.to_dense(), B) <= 1e-8
    v = dense.normal(len(B), seed=5)  # one column takes another path than many
    assert dense.relative_error(A @ v, B @ v) <= 1e-8


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_sum_over_ignored_targets_is_zero(name: str, way: str) -> None:
    loss = nn.CrossEntropyLoss(ignore_index=2, reduction="sum")
    case = LossCase("ignored", loss, torch.full((N,), 2))
    assert not operator(name, case, PARTS, way).to_dense().any()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("loss", "y"),
    [
        (nn.CrossEntropyLoss(ignore_index=2), torch.full((N,), 2)),
        (nn.NLLLoss(), torch.full((N,), -100)),
        (nn.CrossEntropyLoss(weight=torch.eye(C).double()[0]), torch.ones_like(LABELS)),
    ],
    ids=["ignore_index", "default", "weight zero"],
)
def test_mean_over_nothing_is_refused(
    name: str, way: str, loss: nn.Module, y: Tensor
) -> None:
    with pytest.raises(ValueError, match=r"averages over nothing.*ignored.*weight zero"):
        operator(name, LossCase("ignored", loss, y), PARTS, way)


# -------------------------------------------------------------- what is refused


def weighted_entropy(prediction: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(prediction, y, weight=WEIGHT)


@pytest.mark.parametrize(
    ("loss", "y", "shape"),
    [
        (weighted_entropy, LABELS, (C,)),
        (lambda p, y: F.cross_entropy(p, y, ignore_index=0), ignored(LABELS, 0), (C,)),
        (lambda p, y: ((p - y) ** 2).mean().sqrt(), REAL, (C,)),
    ],
    ids=["weight", "ignore_index", "root"],
)
@pytest.mark.parametrize("name", ["hessian", "ggn"])
def test_opaque_mean_that_is_not_over_examples_is_refused(
    name: str, loss: Any, y: Tensor, shape: tuple[int, ...]
) -> None:
    case = LossCase("opaque", loss, y, shape, reduction="mean")
    with pytest.raises(ValueError, match=r"no mean over examples.*reduction=<callable"):
        operator(name, case, [range(N), range(N)], "backpack")
    # one batch needs no putting together
    A, D = operator(name, case, [range(N)], "backpack").to_dense(), truth(name, case)
    assert (A - D).norm() <= 1e-10 * D.norm()


def test_opaque_mean_that_is_called_a_sum_is_refused() -> None:
    case = LossCase("sum", lambda p, y: F.cross_entropy(p, y), LABELS, reduction="sum")
    with pytest.raises(ValueError, match=r"reduction='sum' is no sum over examples"):
        operator("hessian", case, PARTS, "backpack")


def test_opaque_mean_is_checked_on_every_batch() -> None:
    y = ignored(LABELS, 0)
    loss = functools.partial(F.cross_entropy, ignore_index=0)
    case = LossCase("late", lambda p, y: loss(p, y), y, reduction="mean")
    kept = [i for i in range(N) if y[i] != 0]
    rest = [i for i in range(N) if y[i] == 0]
    with pytest.raises(ValueError, match=r"no mean over examples"):
        operator("hessian", case, [kept, [*rest, *kept]], "backpack")


@pytest.mark.parametrize("name", NAMES)
def test_subclass_with_another_divisor_is_refused(name: str) -> None:
    loss = TemperedEntropy(weight=WEIGHT)
    case = LossCase("tempered", loss, LABELS, terms=loss)
    with pytest.raises(ValueError, match=r"TemperedEntropy.*Pass reduction=<callable"):
        operator(name, case, PARTS, "backpack")


def test_subclass_is_checked_on_every_batch() -> None:
    y = ignored(LABELS, 0)
    loss = TemperedEntropy(ignore_index=0)
    kept = [i for i in range(N) if y[i] != 0]
    rest = [i for i in range(N) if y[i] == 0]
    case = LossCase("tempered", loss, y)
    with pytest.raises(ValueError, match=r"TemperedEntropy.*Pass reduction=<callable"):
        operator("ggn", case, [kept, [*rest, *kept]], "backpack")


def test_keyword_that_is_not_honoured_is_refused() -> None:
    def loss(prediction: Tensor, y: Tensor, reduction: str = "mean") -> Tensor:
        return ((prediction - y) ** 2).mean()

    with pytest.raises(ValueError, match=r"returns a scalar for reduction='none'"):
        operator("ef", LossCase("deaf", loss, REAL, terms=loss), PARTS, "func")


@pytest.mark.parametrize("legacy", ["size_average", "reduce"])
def test_deprecated_keywords_are_refused(legacy: str) -> None:
    case = LossCase("legacy", functools.partial(F.mse_loss, **{legacy: False}), REAL)
    with pytest.raises(ValueError, match=rf"deprecated.*{legacy}.*reduction='mean'"):
        operator("hessian", case, PARTS, "func")


def test_empirical_fisher_of_opaque_callable_is_refused() -> None:
    case = LossCase("opaque", lambda p, y: ((p - y) ** 2).sum(), REAL, reduction="sum")
    with pytest.raises(TypeError, match=r"unreduced terms.*keyword reduction"):
        operator("ef", case, PARTS, "func")


# ------------------------------------------------------------ what is understood


def test_required_keyword_reduction() -> None:
    def loss(prediction: Tensor, y: Tensor, reduction: str) -> Tensor:
        return F.mse_loss(prediction, y, reduction=reduction)

    case = LossCase(
        "required",
        loss,
        REAL,
        reduction="mean",
        truth=F.mse_loss,
        terms=functools.partial(loss, reduction="none"),
    )
    for name in NAMES:
        A = operator(name, case, PARTS, "func").to_dense()
        assert dense.relative_error(A, truth(name, case)) <= 1e-8


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_opaque_mean_in_low_precision_is_accepted(dtype: torch.dtype) -> None:
    model = torch.nn.Linear(2, C).to(dtype)
    data = [(X.to(dtype), REAL.to(dtype))]
    H = HessianLinearOperator(
        model,
        lambda p, y: ((p - y) ** 2).mean(),
        list(model.parameters()),
        data,
        reduction="mean",
    )
    assert H.dtype == dtype


@pytest.mark.parametrize(
    ("loss", "convex"),
    [
        (nn.CrossEntropyLoss(), True),
        (F.cross_entropy, True),
        (functools.partial(F.cross_entropy, ignore_index=0), True),
        (lambda p, y, reduction="mean": F.cross_entropy(p, y), False),
    ],
)
def test_tags(loss: Any, convex: bool) -> None:
    case = LossCase("tags", loss, LABELS)
    options = {"check_deterministic": False}
    assert operator("ggn", case, PARTS, "func", **options).psd == convex
    H = operator("hessian", case, PARTS, "func", **options)
    assert (H.symmetric, H.psd) == (True, False)
    assert operator("ef", case, PARTS, "func", **options).psd


def grouped_fisher(case: LossCase, dims: tuple[int, ...]) -> Tensor:
    """``Σ g gᵀ / Z`` with the loss terms summed over some axes first."""
    assert case.terms is not None
    terms = case.terms
    model = case.model
    params = list(model.parameters())
    E = dense.empirical_fisher(
        model,
        lambda p, y: terms(p, y).sum(),
        lambda p, y: terms(p, y).sum(dims) if dims else terms(p, y).flatten(),
        params,
        X,
        case.y,
    )
    t, value = terms(model(X), case.y).sum(), case.scalar(model(X), case.y)
    return E * (value / t).detach()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("per", "loss", "y", "shape", "dims"),
    [
        ("example", nn.MSELoss(), REAL, (C,), (1,)),
        ("example", nn.MSELoss(reduction="sum"), REAL, (C,), (1,)),
        ("example", nn.CrossEntropyLoss(), POSITIONS, (C, T), (1,)),
        ("term", nn.MSELoss(), REAL, (C,), ()),
        ("term", nn.CrossEntropyLoss(), POSITIONS, (C, T), ()),
        ("output", nn.CrossEntropyLoss(), POSITIONS, (C, T), ()),
        ("output", nn.BCEWithLogitsLoss(), SOFT, (C,), (1,)),
        ("output", nn.MSELoss(), dense.normal(N, C, T, seed=3), (C, T), (2,)),
    ],
)
def test_empirical_fisher_per_group(
    per: str,
    loss: Any,
    y: Tensor,
    shape: tuple[int, ...],
    dims: tuple[int, ...],
    way: str,
) -> None:
    terms = type(loss)(reduction="none")
    case = LossCase("grouped", loss, y, shape, terms=terms)
    E = operator("ef", case, PARTS, way, per=per)
    assert dense.relative_error(E.to_dense(), grouped_fisher(case, dims)) <= 1e-8


def test_operators_differ() -> None:
    """The three matrices of a case differ, so that none can stand in for another."""
    case = next(c for c in CASES if c.name.startswith("CrossEntropyLoss"))
    matrices = [truth(name, case) for name in NAMES]
    for A, B in itertools.pairwise(matrices):
        assert dense.relative_error(A, B) > 1e-2
