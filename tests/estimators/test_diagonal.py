"""The diagonal, entry by entry."""

from __future__ import annotations

import math

import pytest
import torch

from curvop import DenseLinearOperator, DiagonalLinearOperator
from curvop.estimators import diagonal
from curvop.estimators.diagonal import METHODS
from tests.comparing import error, random
from tests.estimators.matrices import SPECTRA, N, operator, seeded, with_spectrum


def brute_force_xdiag(
    A: torch.Tensor, G: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and variance of the mean, from a factorisation for each probe and pair."""
    k = G.shape[1]
    Y = A @ G

    def measured(j: int, *without: int) -> torch.Tensor:
        Q = torch.linalg.qr(Y[:, [i for i in range(k) if i not in without]])[0]
        rest = Y[:, j] - Q @ (Q.T @ Y[:, j])
        return (Q * (A.T @ Q)).sum(1) + G[:, j] * rest

    t = [measured(j, j) for j in range(k)]
    shared = [
        (t[i] - measured(i, i, j)) * (t[j] - measured(j, i, j))
        for i in range(k)
        for j in range(k)
        if i != j
    ]
    values = torch.stack(t)
    return values.mean(0), values.var(0) / k + torch.stack(shared).mean(0).clamp(min=0)


@pytest.mark.parametrize("symmetric", [True, False])
def test_xdiag_is_its_definition(symmetric):
    A = with_spectrum(0.8 ** torch.arange(40.0, dtype=torch.float64))
    if not symmetric:
        A = A + 0.3 * random(40, 40, seed=5)
    e = diagonal(A, num_matvecs=12, generator=seeded(3))
    draw = seeded(3)
    G = torch.stack(
        [torch.randint(0, 2, (40,), generator=draw) * 2 - 1 for _ in range(6)], 1
    )
    value, variance = brute_force_xdiag(A, G.double())
    assert error(e.value, value) < 1e-10
    student = 5.507 / 3  # t quantile at Φ(3) with 5 degrees of freedom
    assert error(e.standard_error, student * variance.sqrt()) < 1e-3


def test_does_not_depend_on_rows_at_once(monkeypatch):
    A = operator("decaying")
    whole = diagonal(A, num_matvecs=30, generator=seeded(0))
    monkeypatch.setattr("curvop.estimators.exchangeable.CHUNK", 2**10)
    cut = diagonal(A, num_matvecs=30, generator=seeded(0))
    assert error(cut.value, whole.value) < 1e-13
    assert error(cut.standard_error, whole.standard_error) < 1e-10


def test_hutchinson_is_its_definition():
    A = operator("indefinite")
    e = diagonal(A, method="hutchinson", num_matvecs=30, generator=seeded(0))
    draw = seeded(0)
    V = torch.stack(
        [torch.randint(0, 2, (N,), generator=draw) * 2 - 1 for _ in range(30)], 1
    )
    samples = (A @ V.double()) * V
    assert error(e.value, samples.mean(1)) < 1e-12
    plain = samples.std(1) / math.sqrt(30)
    assert bool((plain < e.standard_error).all())
    assert bool((e.standard_error < 1.6 * plain).all())


def test_sketches_pay_where_the_spectrum_decays():
    A = operator("decaying")
    d = A.to_dense().diag()
    off = {
        m: float(
            (diagonal(A, method=m, num_matvecs=60, generator=seeded(0)).value - d).norm()
        )
        for m in METHODS
    }
    assert off["xdiag"] < 0.05 * off["hutchinson"]


@pytest.mark.parametrize("method", METHODS)
def test_is_exact_with_as_many_products_as_columns(method):
    A = random(30, 30, seed=1)
    e = diagonal(A, method=method)
    assert e.num_matvecs == 30
    assert error(e.value, A.diag()) < 1e-13
    assert float(e.standard_error.max()) < 1e-12


@pytest.mark.parametrize("method", METHODS)
def test_a_tolerance_bounds_the_largest_error(method):
    A = operator("decaying")
    d = A.to_dense().diag()
    e = diagonal(A, method=method, tol=0.4 * float(d.max()), generator=seeded(0))
    assert float(e.standard_error.max()) <= 0.4 * float(d.max())
    assert e.num_matvecs < N
    exact = diagonal(A, method=method, tol=1e-9, generator=seeded(0))
    assert error(exact.value, d) < 1e-9


@pytest.mark.parametrize("method", METHODS)
def test_does_not_depend_on_the_chunks(method):
    A = operator("indefinite")
    runs = [
        diagonal(A, method=method, num_matvecs=40, generator=seeded(1), chunk_size=c)
        for c in (1, 8, 100)
    ]
    for e in runs[1:]:
        assert e.num_matvecs == 40
        assert error(e.value, runs[0].value) < 1e-10
        assert error(e.standard_error, runs[0].standard_error) < 1e-8


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("dtype", "kept"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float32)],
)
def test_precision(method, dtype, kept):
    A = with_spectrum(SPECTRA["decaying"], dtype)
    e = diagonal(A, method=method, num_matvecs=60, generator=seeded(0))
    assert e.value.dtype == e.standard_error.dtype == kept
    off = (e.value - A.diag().to(kept)).abs()
    assert float((off <= 3 * e.standard_error).double().mean()) > 0.97


def test_comes_in_blocks():
    A = random(9, 9, seed=0)
    plain = DenseLinearOperator(A, domain=[(2, 3), (3,)], codomain=[(2, 3), (3,)])
    e = diagonal(plain)
    assert error(e.blocks()[0], A.diag()[:6].reshape(2, 3)) < 1e-13
    assert error(e.blocks()[1], A.diag()[6:]) < 1e-13
    d = [random(2, 3), random(3)]
    named = diagonal(DiagonalLinearOperator(d, names=["weight", "bias"]))
    assert list(named.blocks()) == list(named.block_errors()) == ["weight", "bias"]
    assert error(named.blocks()["weight"], d[0]) < 1e-13
    assert named.block_errors()["weight"].shape == (2, 3)


def test_progress(capsys):
    diagonal(operator("flat"), num_matvecs=40, progressbar=True)
    assert "±" in capsys.readouterr().err
