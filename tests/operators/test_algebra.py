"""Sums, multiples, products, transposes: values, tags, refusals."""

from __future__ import annotations

import numpy
import pytest
import torch
from hypothesis import given, settings

from curvop import (
    DenseLinearOperator,
    DiagonalLinearOperator,
    IdentityLinearOperator,
    LinearOperator,
    LowRankLinearOperator,
)
from tests.comparing import error, random
from tests.operators.expressions import N, Pair, expressions


@settings(max_examples=150, deadline=None, derandomize=True)
@given(expressions)
def test_expressions_have_the_value_of_their_matrices(pair: Pair) -> None:
    A, D = pair
    scale = float(D.abs().max()) or 1.0
    assert float((A.to_dense() - D).abs().max()) <= 1e-9 * scale
    x = random(N)
    assert float((x @ A - D.T @ x).abs().max()) <= 1e-9 * scale


@settings(max_examples=150, deadline=None, derandomize=True)
@given(expressions)
def test_tags_of_expressions_are_true(pair: Pair) -> None:
    A, D = pair
    scale = float(D.abs().max()) or 1.0
    if A.symmetric:
        assert A.T is A
        assert float((D - D.T).abs().max()) <= 1e-9 * scale
    if A.psd:
        assert float(torch.linalg.eigvalsh(D).min()) >= -1e-9 * scale


@pytest.fixture
def S() -> LinearOperator:
    A = random(3, 3)
    return DenseLinearOperator(A + A.T)


@pytest.fixture
def J() -> LinearOperator:
    return DenseLinearOperator(random(5, 3))


def test_psd_of_sums_and_multiples(S: LinearOperator) -> None:
    P = LowRankLinearOperator(random(3, 2))
    assert (P + P).psd
    assert (2 * P).psd
    assert (0 * P).psd
    assert not (-2 * P).psd
    assert (-2 * P).symmetric
    assert not (P - P).psd
    assert not (P + S).psd
    assert (P + S).symmetric


def test_psd_of_products(J: LinearOperator, S: LinearOperator) -> None:
    assert (J.T @ J).psd
    assert (J @ J.T).psd
    assert not (J.T @ J @ J.T @ J @ S).symmetric
    assert (J.T @ J @ J.T @ J).psd
    weights = DiagonalLinearOperator(random(5).abs())
    assert (J.T @ weights @ J).psd
    signs = DiagonalLinearOperator(random(5))
    assert (J.T @ signs @ J).symmetric
    assert not (J.T @ signs @ J).psd
    assert (S @ S).psd
    assert not (S @ DenseLinearOperator(random(3, 3))).symmetric


@pytest.mark.parametrize(
    "derive",
    [lambda J: J, lambda J: J / 2, lambda J: J + J, lambda J: J[1:, :]],
    ids=["matrix", "multiple", "sum", "submatrix"],
)
def test_transposes_are_recognised(derive: object, J: LinearOperator) -> None:
    A = derive(J)
    assert (A.T @ A).psd
    assert (A @ A.T).psd
    assert A.T.T is A


def test_sum_of_a_list(J: LinearOperator) -> None:
    total = sum([J, J, J])
    assert error(total.to_dense(), 3 * J.to_dense()) <= 1e-14


def test_matrices_of_other_libraries_on_both_sides(J: LinearOperator) -> None:
    D, B = J.to_dense(), random(5, 3, seed=1)
    for matrix in (B, B.numpy()):
        assert error((J + matrix).to_dense(), D + B) <= 1e-14
        assert error((matrix + J).to_dense(), D + B) <= 1e-14
        assert error((J - matrix).to_dense(), D - B) <= 1e-14
        assert error((matrix - J).to_dense(), B - D) <= 1e-14


@pytest.mark.parametrize(
    "c", [2, 2.0, numpy.float32(2), numpy.array(2.0), torch.tensor(2), True + 1]
)
def test_numbers_of_all_kinds(c: object, J: LinearOperator) -> None:
    for A in (c * J, J * c):
        assert error(A.to_dense(), 2 * J.to_dense()) <= 1e-14
    assert error((J / c).to_dense(), J.to_dense() / 2) <= 1e-14


def test_damping_keeps_names_and_blocks() -> None:
    D = DiagonalLinearOperator([torch.ones(2), torch.ones(1, 3)], names=["a", "b"])
    damped = D + 0.5 * IdentityLinearOperator.like(D)
    assert damped.psd
    assert damped.domain_names == ("a", "b")
    out = damped @ {"a": torch.ones(2), "b": torch.ones(1, 3)}
    assert torch.equal(out["b"], 1.5 * torch.ones(1, 3))


def test_flat_matrices_fit_block_spaces() -> None:
    D = DiagonalLinearOperator([torch.ones(2), torch.ones(1, 3)])
    for A in (D + torch.eye(5), DenseLinearOperator(torch.eye(5)) + D):
        assert A.domain == D.domain
        assert torch.equal(A.to_dense(), 2 * torch.eye(5))
    assert torch.equal((DenseLinearOperator(torch.eye(5)) @ D).to_dense(), torch.eye(5))


@pytest.mark.parametrize(
    ("do", "kind", "message"),
    [
        (lambda J: J + 1.0, TypeError, "IdentityLinearOperator"),
        (lambda J: J - torch.tensor(1.0), TypeError, "IdentityLinearOperator"),
        (lambda J: J + "matrix", TypeError, "got str"),
        (lambda J: J * J, TypeError, "Multiply operators with @"),
        (lambda J: J * 1j, TypeError, "real number"),
        (lambda J: J * float("nan"), ValueError, "finite"),
        (lambda J: J / 0, ZeroDivisionError, "division"),
        (lambda J: J + J.T, ValueError, "same domain"),
        (lambda J: J @ J, ValueError, "chain"),
        (lambda J: J + DenseLinearOperator(torch.ones(5, 3)), TypeError, "one dtype"),
        (lambda J: J.T @ DenseLinearOperator(torch.ones(5, 3)), TypeError, "one dtype"),
        (
            lambda J: J + DenseLinearOperator(random(5, 3).to("meta"), symmetric=False),
            ValueError,
            "one device",
        ),
    ],
)
def test_refusals(
    do: object, kind: type[Exception], message: str, J: LinearOperator
) -> None:
    with pytest.raises(kind, match=message):
        do(J)
