"""The trace: what each method is, and what all of them promise."""

from __future__ import annotations

import math

import numpy
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import aslinearoperator

from curvop import DenseLinearOperator, Estimate, LowRankLinearOperator
from curvop.estimators import trace
from curvop.estimators.trace import METHODS
from tests.comparing import random
from tests.estimators.matrices import SPECTRA, N, operator, seeded, watched, with_spectrum


def brute_force_xtrace(A: torch.Tensor, G: torch.Tensor) -> tuple[float, float]:
    """Mean and variance of the mean, from a factorisation for each probe and pair."""
    n, k = G.shape
    Y = A @ G

    def leaving_out(*which: int) -> torch.Tensor:
        return torch.linalg.qr(Y[:, [j for j in range(k) if j not in which]])[0]

    def measured(Q: torch.Tensor, g: torch.Tensor) -> float:
        u = g - Q @ (Q.T @ g)
        u = u * math.sqrt(n - Q.shape[1]) / u.norm()
        return float((Q.T @ A @ Q).trace() + u @ A @ u)

    t = torch.tensor([measured(leaving_out(j), G[:, j]) for j in range(k)])
    shared = [
        (t[i] - measured(leaving_out(i, j), G[:, i]))
        * (t[j] - measured(leaving_out(i, j), G[:, j]))
        for i in range(k)
        for j in range(k)
        if i != j
    ]
    variance = t.double().var() / k + max(0.0, float(torch.tensor(shared).mean()))
    return float(t.mean()), float(variance)


@pytest.mark.parametrize("symmetric", [True, False])
def test_xtrace_is_its_definition(symmetric):
    torch.set_default_dtype(torch.float64)
    try:
        A = with_spectrum(0.8 ** torch.arange(40.0))
        if not symmetric:
            A = A + 0.3 * random(40, 40, seed=5)
        generator = seeded(3)
        e = trace(A, method="xtrace", num_matvecs=12, generator=generator)
        draw = seeded(3)
        G = torch.stack([torch.randn(40, generator=draw) for _ in range(6)], 1)
        value, variance = brute_force_xtrace(A, G)
    finally:
        torch.set_default_dtype(torch.float32)
    assert e.value == pytest.approx(value, rel=1e-10)
    student = 5.507 / 3  # t quantile at Φ(3) with 5 degrees of freedom
    assert e.standard_error == pytest.approx(student * math.sqrt(variance), rel=1e-3)


def test_hutchinson_is_its_definition():
    A = operator("indefinite")
    e = trace(A, method="hutchinson", num_matvecs=30, generator=seeded(0))
    draw = seeded(0)
    V = torch.stack(
        [torch.randint(0, 2, (N,), generator=draw) * 2 - 1 for _ in range(30)], 1
    )
    samples = ((A @ V.double()) * V).sum(0)
    assert e.value == pytest.approx(float(samples.mean()), rel=1e-12)
    plain = float(samples.std()) / math.sqrt(30)
    assert plain < e.standard_error < 1.4 * plain  # widened for few samples


def test_hutch_pp_with_its_sketch_of_a_third():
    products = []
    A = watched(with_spectrum(SPECTRA["decaying"]), products.append)
    e = trace(A, num_matvecs=60, generator=seeded(0), chunk_size=10)
    assert e.num_matvecs == sum(products) == 60
    assert products == [5] * 8 + [10, 10]


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
def test_sketches_pay_where_the_spectrum_decays(method):
    A, truth = operator("decaying"), float(SPECTRA["decaying"].sum())
    off = {
        m: numpy.mean(
            [
                abs(trace(A, method=m, num_matvecs=60, generator=seeded(s)).value - truth)
                for s in range(10)
            ]
        )
        for m in (method, "hutchinson")
    }
    assert off[method] < 0.05 * off["hutchinson"]


@pytest.mark.parametrize("method", METHODS)
def test_is_exact_with_as_many_products_as_columns(method):
    A = random(30, 30, seed=1)
    e = trace(A, method=method, num_matvecs=30)
    assert e.num_matvecs == 30
    assert e.value == pytest.approx(float(A.trace()), rel=1e-13)
    assert 0 < e.standard_error < 1e-12


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("num_matvecs", [None, 400, 100])
def test_a_tolerance_out_of_reach(method, num_matvecs):
    """The exact value where it is allowed, and an error bar that says so otherwise."""
    A, truth = operator("flat"), float(SPECTRA["flat"].sum())
    e = trace(A, method=method, tol=1e-6, num_matvecs=num_matvecs, generator=seeded(0))
    if num_matvecs == 100:
        assert e.num_matvecs in (99, 100)
        assert e.standard_error > 1e-6
    else:
        assert e.num_matvecs <= 2 * N + 8
        assert e.value == pytest.approx(truth, rel=1e-12)
        assert e.standard_error < 1e-6


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
@given(rank=st.integers(0, 12), seed=st.integers(0, 10**6), columns=st.integers(13, 30))
@settings(max_examples=20, deadline=None)
def test_low_rank_is_exact(method, rank, seed, columns):
    """However many columns the sketch has more than the matrix has dimensions."""
    U, c = random(100, max(rank, 1), seed=seed), random(max(rank, 1), seed=seed + 1)
    A = LowRankLinearOperator(U, coefficients=c if rank else 0 * c)
    budget = {"hutch++": 3, "xtrace": 2}[method] * columns + 2
    e = trace(A, method=method, num_matvecs=budget, generator=seeded(seed))
    scale = float((U.square().sum(0) * c.abs()).sum())
    assert abs(e.value - float((U.square().sum(0) * (c if rank else 0 * c)).sum())) < (
        1e-11 * scale
    )
    assert e.standard_error < 1e-9 * scale


@pytest.mark.parametrize("method", METHODS)
def test_one_eigenvalue_only(method):
    e = trace(3 * torch.eye(200, dtype=torch.float64), method=method, num_matvecs=40)
    assert e.value == pytest.approx(600, rel=1e-12)
    assert e.standard_error < 1e-10


@pytest.mark.parametrize("method", METHODS)
def test_does_not_depend_on_the_chunks(method):
    A = operator("indefinite")
    runs = [
        trace(A, method=method, num_matvecs=40, generator=seeded(1), chunk_size=c)
        for c in (1, 3, 8, 100)
    ]
    for e in runs[1:]:
        assert e.num_matvecs == 40
        assert e.value == pytest.approx(runs[0].value, rel=1e-10)
        assert e.standard_error == pytest.approx(runs[0].standard_error, rel=1e-8)


@pytest.mark.parametrize("method", METHODS)
def test_chunks_are_never_larger(method):
    sizes = []
    A = watched(with_spectrum(SPECTRA["flat"]), sizes.append)
    trace(A, method=method, num_matvecs=50, chunk_size=6)
    assert max(sizes) <= 6
    assert sum(sizes) == 50


@pytest.mark.parametrize("method", METHODS)
def test_generators(method):
    A, state = operator("flat"), torch.get_rng_state()
    first, second = (trace(A, method=method, num_matvecs=20) for _ in range(2))
    assert first.value != second.value
    seeded_runs = [
        trace(A, method=method, num_matvecs=20, generator=seeded(s)) for s in (3, 3, 4)
    ]
    assert seeded_runs[0] == seeded_runs[1] != seeded_runs[2]
    generator = seeded(3)
    one, other = (trace(A, method=method, generator=generator) for _ in range(2))
    assert one != other
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(method, dtype):
    A = with_spectrum(SPECTRA["decaying"], dtype)
    e = trace(A, method=method, num_matvecs=60, generator=seeded(0))
    assert abs(e.value - float(A.double().trace())) <= 3 * e.standard_error
    assert e.standard_error < 10


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "kind", [torch.from_numpy, numpy.asarray, scipy.sparse.csr_array, aslinearoperator]
)
def test_takes_whatever_is_a_matrix(method, kind):
    A = random(60, 60, seed=2).numpy()
    e = trace(kind(A), method=method, num_matvecs=30, generator=seeded(0))
    again = trace(
        DenseLinearOperator(torch.from_numpy(A)),
        method=method,
        num_matvecs=30,
        generator=seeded(0),
    )
    assert isinstance(e, Estimate)
    assert e.value == pytest.approx(again.value)


def test_one_sample_has_no_error_bar_yet(tmp_path):
    """After Ctrl-C, say."""

    def stop(columns: int) -> None:
        nonlocal count
        count += columns
        if count > 2:
            raise KeyboardInterrupt

    count = 0
    A = watched(with_spectrum(SPECTRA["flat"]), stop)
    e = trace(A, method="hutchinson", chunk_size=1, checkpoint=tmp_path / "run.pt")
    assert e.num_matvecs == 1
    assert math.isnan(e.standard_error)


@pytest.mark.parametrize("method", METHODS)
def test_progress(method, capsys):
    e = trace(
        operator("flat"),
        method=method,
        num_matvecs=40,
        progressbar=True,
        generator=seeded(0),
    )
    shown = capsys.readouterr().err
    assert str(e) in shown
    assert "40/40" in shown
    trace(operator("flat"), method=method, num_matvecs=40)
    assert capsys.readouterr().err == ""
