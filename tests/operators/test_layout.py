"""Vectors that do not fit: what is expected, what was got, how to mend it."""

from __future__ import annotations

from collections import UserDict

import numpy
import pytest
import torch

from curvop import DenseLinearOperator, DiagonalLinearOperator, LinearOperator
from tests.comparing import random


@pytest.fixture
def A() -> LinearOperator:
    """Blocks ``a [2, 2]``, ``b []``, ``c [3]``."""
    blocks = [torch.ones(2, 2), torch.ones(()), torch.ones(3)]
    return DiagonalLinearOperator(blocks, names=["a", "b", "c"])


def test_mappings_of_any_kind(A: LinearOperator) -> None:
    x = UserDict(c=torch.ones(3), a=torch.ones(2, 2), b=torch.ones(()))
    y = A @ x
    assert type(y) is dict
    assert list(y) == ["a", "b", "c"]


def test_rectangular_operators_answer_a_mapping_by_a_list() -> None:
    D = DiagonalLinearOperator([torch.ones(2)], names=["a"])
    J = DenseLinearOperator(torch.ones(3, 2)) @ D
    (y,) = J @ {"a": torch.ones(2)}
    assert torch.equal(y, 2 * torch.ones(3))


def test_what_was_handed_in_is_not_changed(A: LinearOperator) -> None:
    x = torch.ones(8, 2)
    before = x.clone()
    y = A @ x
    y += 1
    assert torch.equal(x, before)


def test_columns_may_have_any_strides(A: LinearOperator) -> None:
    X = random(3, 8, dtype=torch.float32)
    assert torch.equal(A @ X.T, X.T)
    assert torch.equal(X.flip(0).T.flip(1).T @ A, X.flip(0).T.flip(1).T)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.bool])
def test_integers_are_promoted(A: LinearOperator, dtype: torch.dtype) -> None:
    y = A @ torch.ones(8, dtype=dtype)
    assert torch.equal(y, torch.ones(8))


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (torch.ones(7), r"\(8,\) or \(8, K\), got \(7,\)"),
        (torch.ones(7, 8), r"got \(7, 8\)"),
        (torch.ones(8, 2, 2), r"got \(8, 2, 2\)"),
        (torch.tensor(1.0), r"got \(\)"),
        ([torch.ones(2, 2), torch.ones(())], "Expected 3 blocks .* got 2"),
        ([torch.ones(2, 2), torch.ones(()), torch.ones(4)], r"\(3,\).* got .*\(4,\)"),
        ([torch.ones(2, 2, 5), torch.ones(5), torch.ones(3, 4)], "trailing K"),
        ([torch.ones(2, 2), torch.ones(5), torch.ones(3, 5)], "trailing K"),
        ({"a": torch.ones(2, 2), "b": torch.ones(())}, r"missing: \['c'\]"),
        (
            dict(a=torch.ones(2, 2), b=torch.ones(()), c=torch.ones(3), d=torch.ones(1)),
            r"not known: \['d'\]",
        ),
    ],
)
def test_shapes_that_do_not_fit(A: LinearOperator, x: object, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        A @ x


def test_shapes_that_do_not_fit_from_the_left(A: LinearOperator) -> None:
    with pytest.raises(ValueError, match=r"\(8,\) or \(K, 8\), got \(8, 2\)"):
        torch.ones(8, 2) @ A
    with pytest.raises(ValueError, match="leading K"):
        [torch.ones(2, 2, 5), torch.ones(5), torch.ones(3, 5)] @ A


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (numpy.ones(8), "torch.from_numpy"),
        ("vector", "got str"),
        (None, "got NoneType"),
        ([1.0, 2.0, 3.0], "got float at position 0"),
        (torch.ones(8, dtype=torch.float64), "float32, got torch.float64"),
        (torch.ones(8, dtype=torch.bfloat16), "float32, got torch.bfloat16"),
        (torch.ones(8, dtype=torch.complex128), "complex64, got torch.complex128"),
        (
            [torch.ones(2, 2), torch.ones(()), torch.ones(3, dtype=torch.float64)],
            "got torch.float64",
        ),
    ],
)
def test_kinds_that_do_not_fit(A: LinearOperator, x: object, expected: str) -> None:
    with pytest.raises(TypeError, match=expected):
        A @ x


def test_arrays_from_the_left_are_refused(A: LinearOperator) -> None:
    with pytest.raises(TypeError, match=r"torch\.from_numpy"):
        numpy.ones(8) @ A


def test_other_devices_are_refused(A: LinearOperator) -> None:
    with pytest.raises(ValueError, match="on cpu, got one on meta"):
        A @ torch.ones(8, device="meta")


def test_blocks_without_names_refuse_mappings() -> None:
    A = DenseLinearOperator(torch.eye(2))
    with pytest.raises(TypeError, match="no names"):
        A @ {"a": torch.ones(2)}
