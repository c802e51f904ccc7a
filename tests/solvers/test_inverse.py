"""Inverse operators, beyond what the contract asks of every operator."""

from __future__ import annotations

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import eigsh

from curvop import (
    CGInverseLinearOperator,
    DenseLinearOperator,
    IdentityLinearOperator,
    LSMRInverseLinearOperator,
    MINRESInverseLinearOperator,
    NeumannInverseLinearOperator,
    NotConvergedError,
    assume_psd,
    assume_symmetric,
)
from tests.comparing import error, random
from tests.solvers.matrices import Watched, eye, indefinite, positive

INVERSES = [
    CGInverseLinearOperator,
    MINRESInverseLinearOperator,
    LSMRInverseLinearOperator,
]
every_inverse = pytest.mark.parametrize("kind", INVERSES, ids=lambda kind: kind.__name__)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10_000), kind=st.sampled_from(INVERSES), K=st.integers(1, 3))
def test_undoes_the_matrix(seed, kind, K):
    A = assume_psd(positive(10, 100, seed))
    X = random(10, K, seed=seed)
    inverse = kind(A, rtol=1e-11)
    assert error(A @ (inverse @ X), X) <= 1e-7
    assert error(inverse @ (A @ X), X) <= 1e-7
    assert error((A @ inverse) @ X, X) <= 1e-7


@every_inverse
def test_tags_and_transpose(kind):
    psd, symmetric = assume_psd(positive(6, 4)), assume_symmetric(indefinite(6, 2))
    inverse = kind(psd)
    assert inverse.psd
    assert inverse.T is inverse
    if kind is not CGInverseLinearOperator:
        inverse = kind(symmetric)
        assert inverse.symmetric
        assert not inverse.psd
        assert inverse.T is inverse


def test_shift_past_the_spectrum_is_not_psd():
    A = assume_psd(positive(6, 4))
    assert MINRESInverseLinearOperator(A, shift=-1.0).psd
    assert not MINRESInverseLinearOperator(A, shift=0.5).psd


def test_transpose_of_the_pseudo_inverse():
    A = random(7, 4)
    inverse = LSMRInverseLinearOperator(A, rtol=1e-12, damp=0.3)
    assert type(inverse.T.T) is type(inverse)
    u, v = random(4), random(7)
    assert error(u @ (inverse @ v), (inverse.T @ u) @ v) <= 1e-9


@every_inverse
def test_columns_share_products(kind):
    A = Watched(torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)))
    kind(A) @ random(4, 5)
    assert set(A.columns) == {5}


@every_inverse
def test_what_does_not_converge_raises(kind):
    A = assume_psd(positive(50, 1e4))
    inverse = kind(A, maxiter=3)
    for product in (
        lambda: inverse @ random(50),
        lambda: inverse.to_scipy() @ random(50).numpy(),
        lambda: random(2, 50) @ inverse,
    ):
        with pytest.raises(NotConvergedError, match=r"'maxiter' after 3 iterations"):
            product()
    assert issubclass(NotConvergedError, RuntimeError)


def test_says_how_many_columns_failed():
    A = assume_psd(torch.diag(torch.tensor([1.0, -1.0])))
    B = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    with pytest.raises(NotConvergedError, match=r"'negative curvature'.*2 of 3 columns"):
        CGInverseLinearOperator(A) @ B


def test_smallest_eigenvalues_through_the_inverse():
    A = positive(60, 100)
    inverse = CGInverseLinearOperator(assume_psd(A), rtol=1e-12)
    start = numpy.ones(60)
    values = eigsh(inverse.to_scipy(), k=3, which="LM", v0=start)[0]
    truth = 1 / torch.linalg.eigvalsh(A)[:3]
    assert error(values[::-1], truth) <= 1e-7


def test_keeps_blocks_and_names():
    shapes = [(2, 2), (), (3,)]
    A = DenseLinearOperator(positive(8, 10), domain=shapes, codomain=shapes, psd=True)
    A = A + IdentityLinearOperator(shapes, dtype=torch.float64, names=["a", "b", "c"])
    for kind in INVERSES:
        inverse = kind(A)
        assert inverse.domain_names == inverse.codomain_names == ("a", "b", "c")
        x = inverse @ {"a": torch.ones(2, 2).double(), "b": random(), "c": random(3)}
        assert [b.shape for b in x.values()] == shapes
    wide = DenseLinearOperator(random(5, 8), domain=shapes, codomain=[(5,)])
    assert LSMRInverseLinearOperator(wide).codomain == wide.domain


def test_neumann_is_the_polynomial():
    A, s = positive(6, 4), 0.7
    inverse = NeumannInverseLinearOperator(A, num_terms=5, scale=s, rtol=1.0)
    B = eye(6) - s * A
    truth = s * sum(torch.linalg.matrix_power(B, j) for j in range(5))
    assert error(inverse.to_dense(), truth) <= 1e-14


def test_neumann_says_when_more_is_left_or_it_diverges():
    A = positive(6, 4)  # eigenvalues from 1 down to 1/4
    with pytest.raises(NotConvergedError, match=r"leaves .* after 5 terms"):
        NeumannInverseLinearOperator(A, num_terms=5) @ random(6)
    with pytest.raises(NotConvergedError, match="2 / λ_max"):
        NeumannInverseLinearOperator(A, scale=2.1, rtol=1.0) @ random(6)
    huge = NeumannInverseLinearOperator(A * 1e9, num_terms=200, rtol=1.0)
    with pytest.raises(NotConvergedError):  # until it overflows
        huge @ random(6)
    inverse = NeumannInverseLinearOperator(A, num_terms=100)
    assert error(A @ (inverse @ random(6)), random(6)) <= 1e-6
    assert float((inverse @ torch.zeros(6).double()).norm()) == 0
