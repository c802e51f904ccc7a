"""Inner products of long vectors, bases in panels, bars, threads."""

from __future__ import annotations

import threading

import pytest
import torch

from curvop.spectra import eigsh, inner_products, spectral_density
from curvop.spectra.basis import PANEL, Basis
from curvop.spectra.krylov import Krylov
from tests.comparing import error, random
from tests.spectra.matrices import SPECTRA, linspace, symmetric


@pytest.mark.parametrize("N", [1, 100, inner_products.PART + 1, 3_000_000])
def test_sums_in_single_precision(N):
    v, w = (random(N, seed=i, dtype=torch.float32).abs() for i in range(2))
    assert (
        abs(inner_products.inner_product(v, w) / float(v.double() @ w.double()) - 1) < 1e-6
    )
    assert abs(inner_products.norm(v) / float(v.double().norm()) - 1) < 1e-6
    both = inner_products.inner_products(torch.stack([v, w]), w)
    assert both.dtype == torch.float64
    assert error(both, torch.stack([v, w]).double() @ w.double()) < 1e-6


def test_long_vectors_in_single_precision_stay_orthogonal():
    basis = Basis(1_000_000, 2, 8, dtype=torch.float32, device=torch.device("cpu"))
    krylov = Krylov(basis)
    for seed in range(8):  # positive: far from orthogonal to begin with
        assert krylov.offer(random(1_000_000, seed=seed, dtype=torch.float32).abs())
    V = basis.rows(0, 8).double()
    assert (V @ V.T - torch.eye(8)).abs().max() < 1e-6


def test_panels():
    N, n = 50, PANEL + 9
    basis = Basis(N, 3, n, dtype=torch.float64, device=torch.device("cpu"))
    V = random(n, N)
    for i, v in enumerate(V):
        basis.put(i, v)
    assert [len(p) for p in basis.panels] == [3, PANEL, 6]
    assert torch.equal(basis.rows(2, n - 1), V[2 : n - 1])
    S = random(n - 3, 7, seed=1)
    basis.rotate(1, n - 2, S)
    assert error(basis.rows(1, 8), S.T @ V[1 : n - 2]) < 1e-13
    assert torch.equal(basis.rows(0, 1), V[:1])
    basis.move(n - 2, n, 8)
    assert torch.equal(basis.rows(8, 10), V[n - 2 :])
    left = basis.leave(3)
    assert left.shape == (3, N)
    assert left.untyped_storage().nbytes() == 3 * N * 8  # nothing else is kept alive
    assert basis.panels == []


def test_a_decomposition_survives_restarts():
    """A V = V T + F C, with orthonormal vectors."""
    A = symmetric(linspace(-1, 3, 60))
    basis = Basis(60, 2, 30, dtype=torch.float64, device=torch.device("cpu"))
    krylov = Krylov(basis)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        krylov.inject(generator)
    for _ in range(20):
        if krylov.m + 2 * krylov.q > 30:
            theta, S, _ = krylov.ritz()
            krylov.restart(theta[-9:], S[:, -9:])
        krylov.expand(lambda V: V @ A)
        V, F = basis.rows(0, krylov.m), basis.rows(krylov.m, krylov.used)
        T, C = krylov.matrices()
        assert (V @ A - T.T @ V - C.T @ F).abs().max() < 1e-13
        both = torch.cat([V, F])
        assert (both @ both.T - torch.eye(len(both))).abs().max() < 1e-13


def test_bars(capsys):
    A = symmetric(SPECTRA["60 negative"])
    eigsh(A, 3, tol=1e-6, progressbar=True)
    shown = capsys.readouterr().err
    assert "eigsh" in shown
    assert "converged=" in shown
    assert "residual=" in shown
    eigsh(A, 2, which="LA", tol=1e-3, method="lobpcg", progressbar=True)
    assert "residual=" in capsys.readouterr().err
    spectral_density(A, num_probes=2, num_matvecs=5, progressbar=True)
    assert "probes=" in capsys.readouterr().err
    eigsh(A, 3, tol=1e-6)
    assert capsys.readouterr().err == ""


def test_outside_the_main_thread():
    """Where signals cannot be handled."""
    A = symmetric(SPECTRA["rank 2"])
    found = []
    thread = threading.Thread(target=lambda: found.append(eigsh(A, 2).values))
    thread.start()
    thread.join()
    assert error(found[0], torch.tensor([-1.0, 2.0])) < 1e-12
