"""Preconditioners: what they are, and the iterations that they save."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator, nn

from curvop import (
    DenseLinearOperator,
    DiagonalLinearOperator,
    GGNLinearOperator,
    IdentityLinearOperator,
    assume_psd,
    cg,
    jacobi_preconditioner,
    nystrom_preconditioner,
)
from tests.comparing import error, random
from tests.solvers.matrices import Watched, eye, positive, with_spectrum


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


# -------------------------------------------------------------------------- Nyström


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10_000),
    rank=st.integers(1, 10),
    damping=st.sampled_from([0.0, 1e-3, 1.0]),
)
def test_nystrom_is_positive_definite_and_at_most_the_identity(seed, rank, damping):
    A = assume_psd(positive(10, 1e4, seed))
    M = nystrom_preconditioner(A, rank, damping=damping, generator=seeded(seed))
    values = torch.linalg.eigvalsh(M.to_dense())
    assert M.psd
    assert float(values.min()) > 0
    assert float(values.max()) <= 1 + 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nystrom_of_a_low_rank_matrix_is_its_inverse_there(dtype):
    values = torch.zeros(50, dtype=torch.float64)
    values[:5] = torch.tensor([100.0, 50, 10, 5, 2])
    A = with_spectrum(values).to(dtype)
    M = nystrom_preconditioner(assume_psd(A), 12, damping=1e-2, generator=seeded())
    PA = M @ (A + 1e-2 * torch.eye(50, dtype=dtype))
    # all of the spectrum is moved to where the smallest eigenvalue of the sketch is
    top = torch.linalg.eigvals(PA).real.sort().values
    low = 1e-2
    assert float(top.min()) >= 0.99 * low
    spread = top[(top - low).abs() > 0.05 * low]
    assert float(spread.max() / spread.min()) <= 1.01 if len(spread) else True


def test_nystrom_bounds_the_condition():
    A = positive(200, 1e8)
    for damping in (1e-1, 1e-2):
        spectrum = torch.linalg.eigvalsh(A)
        effective = float((spectrum / (spectrum + damping)).sum())
        rank = 2 * math.ceil(1.5 * effective) + 1
        M = nystrom_preconditioner(assume_psd(A), rank, damping=damping, generator=seeded())
        values = torch.linalg.eigvals(M @ (A + damping * eye(200))).real
        # Frangella, Tropp and Udell, theorem 5.1: below 28 in expectation
        assert float(values.max() / values.min()) <= 28


def test_nystrom_takes_one_product_of_rank_columns_and_repeats_by_its_seed():
    A = Watched(positive(30, 1e3))
    state = torch.get_rng_state()
    M = nystrom_preconditioner(A, 7, generator=seeded())
    assert A.columns == [7]
    again = nystrom_preconditioner(A, 7, generator=seeded())
    assert torch.equal(M.to_dense(), again.to_dense())
    other = nystrom_preconditioner(A, 7)
    assert not torch.equal(M.to_dense(), other.to_dense())
    assert torch.equal(torch.get_rng_state(), state)


def test_nystrom_keeps_blocks_and_names():
    shapes = [(2, 2), (), (3,)]
    A = DenseLinearOperator(positive(8, 10), domain=shapes, codomain=shapes, psd=True)
    A = A + IdentityLinearOperator(shapes, dtype=torch.float64, names=["a", "b", "c"])
    assert nystrom_preconditioner(A, 3).domain == A.domain
    assert nystrom_preconditioner(A, 3).domain_names == ("a", "b", "c")
    assert jacobi_preconditioner(A).domain_names == ("a", "b", "c")


def test_nystrom_in_half_precision():
    A = assume_psd(positive(30, 100).bfloat16())
    M = nystrom_preconditioner(A, 10, damping=1e-2, generator=seeded())
    assert M.dtype == torch.bfloat16
    assert float(torch.linalg.eigvalsh(M.to_dense().float()).min()) > 0


# --------------------------------------------------------------------------- Jacobi


def test_jacobi_from_an_exact_diagonal():
    d = torch.tensor([4.0, 0.0, -1.0, 2.0], dtype=torch.float64)
    M = jacobi_preconditioner(eye(4), d, damping=0.5)
    truth = 1 / (torch.tensor([4.0, 2, 2, 2], dtype=torch.float64) + 0.5)
    # what is not positive is raised to the smallest that is
    assert error(M.to_dense().diagonal(), truth) <= 1e-14
    assert type(M) is DiagonalLinearOperator
    assert M.psd


def test_jacobi_estimates_the_diagonal():
    A = positive(100, 100) + torch.diag(torch.logspace(0, 3, 100, dtype=torch.float64))
    A = Watched(A)
    M = jacobi_preconditioner(A, num_probes=40, generator=seeded())
    assert sum(A.columns) == 40
    estimate, truth = 1 / M.to_dense().diagonal(), A.matrix.diagonal()
    off = A.matrix - A.matrix.diagonal().diag()
    standard_error = (off**2).sum(1).sqrt() / 40**0.5
    assert bool(((estimate - truth).abs() <= 4.5 * standard_error).all())


def test_jacobi_of_a_diagonal_is_exact():
    d = random(30).abs() + 0.1
    M = jacobi_preconditioner(DiagonalLinearOperator(d), num_probes=2)
    assert error(M.to_dense().diagonal(), 1 / d) <= 1e-12


def test_jacobi_raises_entries_below_their_error():
    U = random(40, 1)
    A = assume_psd(U @ U.T + 1e-9 * eye(40))  # many entries drown in noise
    M = jacobi_preconditioner(A, num_probes=8, generator=seeded())
    d = 1 / M.to_dense().diagonal()
    assert float(d.min()) > 0
    assert float(d.max() / d.min()) < 1e4


def test_jacobi_saves_iterations_where_the_diagonal_varies():
    scales = torch.logspace(0, 3, 150, dtype=torch.float64)
    A = scales[:, None].sqrt() * positive(150, 20) * scales.sqrt()
    A, b = assume_psd(A), random(150)
    plain = cg(A, b).iterations
    for M in (
        jacobi_preconditioner(A, A.to_dense().diagonal()),
        jacobi_preconditioner(A, generator=seeded()),
    ):
        solution = cg(A, b, M=M)
        assert solution.status == "converged"
        assert solution.iterations <= plain / 3


# ------------------------------------------------------------------------- a network


def digits_network():
    """The network of the example, trained for a moment on the digits."""
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    digits = load_digits()
    X, y = torch.from_numpy(digits.data / 16.0), torch.from_numpy(digits.target)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(64, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 10)
        ).double()
    loss_func = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(12):
        for rows in torch.arange(len(y)).split(512):
            optimizer.zero_grad()
            loss_func(model(X[rows]), y[rows]).backward()
            optimizer.step()
    return model, loss_func, X, y


def test_nystrom_halves_the_iterations_on_the_damped_ggn_of_the_digits():
    model, loss_func, X, y = digits_network()
    params = dict(model.named_parameters())
    gradient = torch.autograd.grad(loss_func(model(X), y), list(params.values()))
    b = {name: -g for name, g in zip(params, gradient, strict=True)}
    G = GGNLinearOperator(model, loss_func, params, [(X, y)], check_deterministic=False)
    damping = 1e-3
    damped = G + damping * IdentityLinearOperator.like(G)
    M = nystrom_preconditioner(G, 100, damping=damping, generator=seeded())
    plain, preconditioned = cg(damped, b), cg(damped, b, M=M)
    assert plain.status == preconditioned.status == "converged"
    assert preconditioned.iterations <= plain.iterations / 2
    assert list(preconditioned.x) == list(params)
