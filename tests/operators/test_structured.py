"""Operators with a structure of their own: what they find out and what they refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from curvop import (
    BlockDiagonalLinearOperator,
    DenseLinearOperator,
    DiagonalLinearOperator,
    IdentityLinearOperator,
    LinearOperator,
    LowRankLinearOperator,
)
from tests.comparing import random

I2 = torch.eye(2)


def test_dense_looks_up_symmetry() -> None:
    assert DenseLinearOperator(I2).symmetric
    assert not DenseLinearOperator(I2).psd
    assert not DenseLinearOperator(torch.tensor([[1.0, 2.0], [0.0, 1.0]])).symmetric
    for size in (1e-30, 1.0, 1e30):  # rounding is relative to the largest entry
        rounded = torch.tensor([[1.0, 2.0], [2.000001, 1.0]]) * size
        assert DenseLinearOperator(rounded).symmetric
        assert DenseLinearOperator(rounded, psd=True).psd
        differs = torch.tensor([[1.0, 2.0], [2.001, 1.0]]) * size
        assert not DenseLinearOperator(differs).symmetric
    nan = torch.tensor([[1.0, float("nan")], [2.0, 1.0]])
    assert not DenseLinearOperator(nan).symmetric
    assert not DenseLinearOperator(torch.ones(2, 3)).symmetric


def test_dense_compares_spaces_not_their_notation() -> None:
    assert DenseLinearOperator(I2, domain=[(2,)]).symmetric
    assert DenseLinearOperator(I2, domain=[(2, 1)], codomain=((2, 1),)).symmetric
    # the same numbers, but between different spaces
    assert not DenseLinearOperator(I2, domain=[(2, 1)]).symmetric


def test_dense_leaves_gradients_behind() -> None:
    A = DenseLinearOperator(I2.clone().requires_grad_())
    assert not (A @ torch.ones(2)).requires_grad


def test_signs_decide_on_psd() -> None:
    assert DiagonalLinearOperator(torch.tensor([1.0, 0.0])).psd
    assert not DiagonalLinearOperator(torch.tensor([1.0, -1.0])).psd
    U = random(3, 2)
    assert LowRankLinearOperator(U, coefficients=torch.tensor([1.0, 0.0]).double()).psd
    assert not LowRankLinearOperator(U, coefficients=torch.tensor([1.0, -1.0]).double()).psd
    assert not LowRankLinearOperator(U, U).symmetric  # by identity, not by value


def test_block_diagonal_keeps_distinct_names() -> None:
    a = DiagonalLinearOperator(torch.ones(2), names=["a"])
    b = DiagonalLinearOperator(torch.ones(1), names=["b"])
    assert BlockDiagonalLinearOperator([a, b]).domain_names == ("a", "b")
    assert BlockDiagonalLinearOperator([a, a]).domain_names is None


def test_block_diagonal_of_rectangles() -> None:
    A = DenseLinearOperator(torch.ones(1, 3))
    B = BlockDiagonalLinearOperator([A, A.T])
    assert B.shape == (4, 4)
    assert not B.symmetric
    x = torch.arange(4.0)
    assert torch.equal(B @ x, torch.tensor([3.0, 3.0, 3.0, 3.0]))
    assert torch.equal(x @ B, torch.tensor([0.0, 0.0, 0.0, 6.0]))


def test_identity_like() -> None:
    A = DiagonalLinearOperator([torch.ones(2).double()], names=["a"])
    eye = IdentityLinearOperator.like(A)
    assert (eye.domain, eye.domain_names, eye.dtype) == (A.domain, ("a",), A.dtype)


def test_representation_names_shape_type_and_tags() -> None:
    A = LowRankLinearOperator(torch.ones(3, 1))
    assert repr(A) == "<3x3 LowRankLinearOperator, torch.float32, cpu, psd>"


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: DenseLinearOperator([[1.0]]), TypeError, "as a tensor, got list"),
        (lambda: DenseLinearOperator(torch.ones(2)), ValueError, "2 dimensions"),
        (lambda: DenseLinearOperator(torch.eye(2).long()), TypeError, "int64"),
        (
            lambda: DenseLinearOperator(torch.eye(2).cfloat()),
            TypeError,
            "real floating-point",
        ),
        (
            lambda: DenseLinearOperator(I2, domain=[(3,)]),
            ValueError,
            "domain with 2 entries, got 3",
        ),
        (
            lambda: DenseLinearOperator(torch.ones(2, 3), psd=True),
            ValueError,
            "Tagged as symmetric",
        ),
        (
            lambda: DenseLinearOperator(I2 + I2[0], symmetric=True),
            ValueError,
            "Tagged as symmetric",
        ),
        (
            lambda: DenseLinearOperator(I2, domain=[(2, 1)], symmetric=True),
            ValueError,
            "equal domain and codomain",
        ),
        (lambda: DiagonalLinearOperator([]), ValueError, "at least one block"),
        (
            lambda: DiagonalLinearOperator([torch.ones(1), torch.ones(1).double()]),
            TypeError,
            "float32 and torch.float64",
        ),
        (
            lambda: DiagonalLinearOperator([torch.ones(1)], names=["a", "b"]),
            ValueError,
            r"1 blocks, got \['a', 'b'\]",
        ),
        (
            lambda: IdentityLinearOperator([(1,), (1,)], names=["a", "a"]),
            ValueError,
            "name of its own",
        ),
        (lambda: IdentityLinearOperator([]), ValueError, "at least one block"),
        (lambda: BlockDiagonalLinearOperator([]), ValueError, "at least one"),
        (
            lambda: BlockDiagonalLinearOperator(
                [DenseLinearOperator(I2), DenseLinearOperator(I2.double())]
            ),
            TypeError,
            "one dtype",
        ),
        (
            lambda: LowRankLinearOperator(torch.ones(3, 2), torch.ones(3, 1)),
            ValueError,
            "V with 2 columns, got 1",
        ),
        (
            lambda: LowRankLinearOperator(torch.ones(3, 2), torch.ones(3, 2).double()),
            TypeError,
            "float32 and torch.float64",
        ),
        (
            lambda: LowRankLinearOperator(torch.ones(3, 2), coefficients=torch.ones(3)),
            ValueError,
            r"shape \(2,\)",
        ),
    ],
)
def test_refusals(
    make: Callable[[], LinearOperator], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        make()
