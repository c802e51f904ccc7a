"""What is refused, and how one is told to mend it."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from curvop import DenseLinearOperator, as_operator, assume_symmetric
from curvop.estimators import (
    block_traces,
    diagonal,
    effective_dimension,
    frobenius_norm,
    logdet,
    trace,
    trace_function,
)
from tests.comparing import random
from tests.estimators.matrices import operator, watched

GENERAL = [trace, diagonal, frobenius_norm, block_traces]
ALL = [
    *GENERAL,
    partial(trace_function, f=torch.abs),
    logdet,
    partial(effective_dimension, damping=1.0),
]
PSD = operator("flat")


@pytest.mark.parametrize("estimator", ALL)
class TestOptions:
    @pytest.mark.parametrize("num_matvecs", [0, 1, -3, 30.0, True, "many"])
    def test_number_of_products(self, estimator, num_matvecs):
        with pytest.raises(ValueError, match="Expected num_matvecs as an integer"):
            estimator(PSD, num_matvecs=num_matvecs)

    @pytest.mark.parametrize("tol", [0, -1.0, math.nan, math.inf, "small", True])
    def test_tolerance(self, estimator, tol):
        with pytest.raises(ValueError, match="Expected tol as a positive number"):
            estimator(PSD, tol=tol)

    @pytest.mark.parametrize("chunk_size", [0, -1, 2.5, None])
    def test_chunks(self, estimator, chunk_size):
        with pytest.raises(ValueError, match="Expected chunk_size as a positive integer"):
            estimator(PSD, chunk_size=chunk_size)

    def test_generator(self, estimator):
        with pytest.raises(TypeError, match="manual_seed"):
            estimator(PSD, generator=3)

    def test_no_matrix(self, estimator):
        with pytest.raises(TypeError, match="Expected a curvop operator"):
            estimator([[1.0]])

    def test_not_finite(self, estimator):
        A = DenseLinearOperator(torch.full((40, 40), math.nan))
        A = watched(A.to_dense(), lambda K: None)
        if estimator in ALL[-2:]:
            from curvop import assume_psd

            A = assume_psd(A)
        with pytest.raises(ValueError, match=r"got nan or inf in product 1\."):
            estimator(A, num_matvecs=30)


@pytest.mark.parametrize("estimator", [e for e in ALL if e is not frobenius_norm])
def test_rectangular(estimator):
    with pytest.raises(ValueError, match=r"needs a square matrix, got .* \(3, 4\)"):
        estimator(torch.ones(3, 4))


def test_tags():
    with pytest.raises(ValueError, match=r"trace_function needs .* assume_symmetric\(A\)"):
        trace_function(random(4, 4), torch.abs)
    for estimator in (logdet, partial(effective_dimension, damping=1.0)):
        with pytest.raises(ValueError, match=r"needs a psd .* assume_psd\(A\)"):
            estimator(assume_symmetric(random(4, 4)))


@pytest.mark.parametrize("estimator", [trace, diagonal])
def test_method(estimator):
    with pytest.raises(ValueError, match="Expected method as one of"):
        estimator(PSD, method="exact")


@pytest.mark.parametrize("damping", [-1.0, math.nan, math.inf, "none", True])
def test_damping(damping):
    with pytest.raises(ValueError, match="damping as a non-negative number"):
        logdet(PSD, damping=damping)
    with pytest.raises(ValueError, match="damping as a positive number"):
        effective_dimension(PSD, damping)
    with pytest.raises(ValueError, match="damping as a positive number"):
        effective_dimension(PSD, 0)


def test_function():
    with pytest.raises(TypeError, match="Expected f as a function"):
        trace_function(PSD, "log")


def test_blocks_that_differ():
    A = DenseLinearOperator(random(4, 4), domain=[(4,)], codomain=[(2, 2)])
    with pytest.raises(ValueError, match="equal input and output blocks"):
        block_traces(A)


def test_directory_of_the_checkpoint(tmp_path):
    with pytest.raises(ValueError, match="directory that exists"):
        trace(PSD, checkpoint=tmp_path / "no" / "run.pt")


def test_bad_options_leave_no_file(tmp_path):
    with pytest.raises(ValueError, match="tol"):
        trace(as_operator(PSD), tol=-1.0, checkpoint=tmp_path / "run.pt")
    assert not list(tmp_path.iterdir())
