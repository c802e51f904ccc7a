"""Traces of functions, by quadrature."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curvop import LowRankLinearOperator, assume_psd
from curvop.estimators import (
    effective_dimension,
    gauss_radau,
    logdet,
    trace,
    trace_function,
    tridiagonals,
)
from curvop.estimators.quadrature import quadrature
from tests.comparing import error, random
from tests.estimators.matrices import SPECTRA, N, operator, seeded, watched, with_spectrum


@given(distinct=st.integers(1, 6), columns=st.integers(1, 4), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_lanczos_ends_where_the_space_is_invariant(distinct, columns, seed):
    """With ``d`` distinct eigenvalues after ``d`` steps, and the quadrature is exact."""
    values = (1.0 + torch.arange(distinct, dtype=torch.float64)).repeat(8)
    A = assume_psd(with_spectrum(values))
    V = random(len(values), columns, seed=seed)
    V = V / V.norm(dim=0)
    *_, (T, invariant) = tridiagonals(A, V, [len(values)], 0)
    assert T.shape == (columns, distinct, distinct)
    assert bool(invariant.all())
    logarithm = torch.linalg.eigh(A.to_dense())
    L = (logarithm.eigenvectors * logarithm.eigenvalues.log()) @ logarithm.eigenvectors.T
    assert torch.allclose(quadrature(T, torch.log, 0.0)[0], (V * (L @ V)).sum(0), atol=1e-9)


def test_some_spaces_are_invariant_before_others():
    values = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0], dtype=torch.float64)
    A = assume_psd(values.diag())
    V = torch.zeros(5, 2, dtype=torch.float64)
    V[2, 0] = 1
    V[:, 1] = 5**-0.5
    *_, (T, invariant) = tridiagonals(A, V, [5], 0)
    assert invariant.tolist() == [True, True]
    got = quadrature(T, torch.log, 0.0)[0]
    assert error(got, torch.stack([values[2].log(), values.log().mean()])) < 1e-12


def test_lanczos_is_orthogonal():
    """A rank-2 matrix has no more than three nodes with weight, whatever the steps."""
    A = LowRankLinearOperator(random(50, 2, seed=3))
    V = random(50, 1, seed=4)
    *_, (T, _) = tridiagonals(A, V / V.norm(), [40], 0)
    assert T.shape[-1] == 3


@pytest.mark.parametrize("f", [lambda x: (x + 1e-3).log(), lambda x: x / (x + 1e-3)])
def test_gauss_and_radau_enclose(f):
    values = 10 ** (-6 * torch.arange(60.0, dtype=torch.float64) / 59)
    A = assume_psd(with_spectrum(values))
    V = random(60, 5, seed=2)
    V = V / V.norm(dim=0)
    vectors = torch.linalg.eigh(A.to_dense())
    weights = (vectors.eigenvectors.T @ V).square()
    truth = (weights * f(vectors.eigenvalues.clamp(min=0))[:, None]).sum(0)
    for T, _ in tridiagonals(A, V, range(1, 41), 0):
        ends = torch.stack([quadrature(M, f, 0.0)[0] for M in (T, gauss_radau(T))])
        assert bool((ends.amin(0) <= truth + 1e-9).all())
        assert bool((truth - 1e-9 <= ends.amax(0)).all())


def test_the_identity_function_is_the_trace():
    A = operator("indefinite")
    e = trace_function(A, lambda x: x, num_matvecs=300, generator=seeded(0))
    direct = trace(A, method="hutchinson", num_matvecs=e.num_matvecs)
    assert abs(e.value - direct.value) <= 3 * math.hypot(
        e.standard_error, direct.standard_error
    )


def test_truncation_counts():
    """One probe's spread does not tell that two steps are too few; their change does."""
    values = 10 ** (-8 * torch.arange(N, dtype=torch.float64) / (N - 1))
    A = assume_psd(with_spectrum(values))
    truth = float(values.log().sum())
    few = logdet(A, num_matvecs=20, generator=seeded(0))
    assert abs(few.value - truth) <= 3 * few.standard_error
    assert few.standard_error > 0.1 * abs(truth)
    spread = logdet(A, num_matvecs=20, generator=seeded(1)).value - few.value
    assert abs(spread) < 0.1 * few.standard_error
    many = logdet(A, tol=0.01 * abs(truth), generator=seeded(0))
    assert abs(many.value - truth) <= 3 * many.standard_error


def test_exact_where_products_allow():
    A = assume_psd(with_spectrum(1 + torch.arange(15.0, dtype=torch.float64)))
    e = logdet(A, tol=1e-8)
    assert e.value == pytest.approx(math.lgamma(16), abs=1e-8)
    assert e.standard_error <= 1e-8


def test_constant_spectrum_takes_one_step():
    products = []
    A = assume_psd(watched(2 * torch.eye(50, dtype=torch.float64), products.append))
    e = logdet(A, num_matvecs=100, chunk_size=4, generator=seeded(0))
    assert e.value == pytest.approx(50 * math.log(2), rel=1e-12)
    assert e.num_matvecs == sum(products)
    assert e.standard_error < 1e-10


def test_damping():
    values = torch.cat([torch.zeros(30), torch.rand(30)]).double()
    A = assume_psd(with_spectrum(values))
    e = logdet(A, damping=0.1, num_matvecs=500, generator=seeded(0))
    assert abs(e.value - float((values + 0.1).log().sum())) <= 3 * e.standard_error
    d = effective_dimension(A, 0.1, num_matvecs=500, generator=seeded(0))
    assert abs(d.value - float((values / (values + 0.1)).sum())) <= 3 * d.standard_error
    with pytest.raises(ValueError, match="positive damping"):
        logdet(assume_psd(torch.zeros(30, 30)))


@pytest.mark.parametrize("num_matvecs", [20, 33, 100, 777])
@pytest.mark.parametrize("chunk_size", [1, 8])
def test_keeps_to_the_budget(num_matvecs, chunk_size):
    products = []
    A = watched(with_spectrum(SPECTRA["indefinite"]), products.append)
    e = trace_function(A, torch.abs, num_matvecs=num_matvecs, chunk_size=chunk_size)
    assert sum(products) == e.num_matvecs <= num_matvecs
    assert max(products) <= chunk_size
    assert math.isfinite(e.standard_error)


def test_functions_that_are_not_finite():
    with pytest.raises(ValueError, match=r"finite between .* got nan at -"):
        trace_function(operator("indefinite"), torch.log)
    with pytest.raises(ValueError, match="keep the shape"):
        trace_function(operator("flat"), torch.sum)


def test_single_precision():
    A = assume_psd(with_spectrum(SPECTRA["flat"], torch.float32))
    e = logdet(A, generator=seeded(0))
    assert abs(e.value - float(SPECTRA["flat"].log().sum())) <= 3 * e.standard_error


def test_progress(capsys):
    e = logdet(operator("flat"), progressbar=True, generator=seeded(0))
    assert str(e) in capsys.readouterr().err
