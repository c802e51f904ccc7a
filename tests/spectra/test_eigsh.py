"""Eigenpairs against dense solvers."""

from __future__ import annotations

import numpy
import pytest
import scipy.linalg
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curvop import (
    BlockDiagonalLinearOperator,
    DenseLinearOperator,
    DiagonalLinearOperator,
    IdentityLinearOperator,
    assume_psd,
    assume_symmetric,
)
from curvop.spectra import eigsh
from tests.comparing import error, random
from tests.spectra.matrices import SPECTRA, Watched, expected, linspace, symmetric

MATRICES = {name: symmetric(spectrum) for name, spectrum in SPECTRA.items()}


def check(A, pairs, truth, tolerance):
    """Values, residuals, orthonormality."""
    scale = max(float(torch.linalg.eigvalsh(A).abs().max()), 1e-300)
    assert pairs.status == "converged"
    assert pairs.values.shape == truth.shape
    assert (pairs.values.diff() >= 0).all()
    assert float((pairs.values - truth).abs().max()) <= tolerance * scale
    V = pairs.vectors
    assert (V.T @ V - torch.eye(V.shape[1])).abs().max() < 1e-12
    true = (A @ V - V * pairs.values).norm(dim=0)
    assert (pairs.residuals - true).abs().max() <= 1e-13 * scale


@pytest.mark.parametrize(
    ("name", "which"),
    [
        (name, which)
        for name in SPECTRA
        for which in ("LA", "SA", "LM", "BE")
        # 790 values within a hundredth of zero: no Krylov method gets to these
        if name != "curvature" or which in ("LA", "LM")
    ],
)
def test_known_spectra(name, which):
    A = MATRICES[name]
    pairs = eigsh(A, 10, which=which, tol=1e-10)
    check(A, pairs, expected(A, 10, which), 1e-10)


@pytest.mark.parametrize("ncv", [13, 20])
@pytest.mark.parametrize("which", ["LA", "LM"])
@pytest.mark.parametrize("name", ["five-fold top", "top and bottom multiple", "rank 2"])
def test_small_bases(name, which, ncv):
    A = MATRICES[name]
    pairs = eigsh(A, 10, which=which, tol=1e-10, ncv=ncv)
    check(A, pairs, expected(A, 10, which), 1e-10)


@pytest.mark.parametrize("block_size", [2, 5])
@pytest.mark.parametrize("name", ["five-fold top", "rank 2", "60 negative", "zero"])
def test_blocks(name, block_size):
    A = MATRICES[name]
    pairs = eigsh(A, 7, tol=1e-10, block_size=block_size)
    check(A, pairs, expected(A, 7, "LM"), 1e-10)


def test_start_vectors_without_a_part_in_what_is_wanted():
    """All start vectors within an invariant subspace that has none of the wanted."""
    A = torch.diag(linspace(0, 1, 200))
    v0 = torch.zeros(200, dtype=torch.float64)
    v0[:100] = 1
    pairs = eigsh(A, 3, which="LA", tol=1e-10, v0=v0)
    check(A, pairs, expected(A, 3, "LA"), 1e-10)


@pytest.mark.parametrize("N", [1, 2, 3, 5, 30])
def test_all_eigenpairs(N):
    A = symmetric(random(N), seed=N)
    pairs = eigsh(A, N)
    check(A, pairs, torch.linalg.eigvalsh(A), 1e-12)


@settings(deadline=None, max_examples=60)
@given(
    spectrum=st.lists(
        st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0]), min_size=1, max_size=12
    ),
    which=st.sampled_from(["LA", "SA", "LM", "BE"]),
    data=st.data(),
)
def test_any_multiplicities(spectrum, which, data):
    A = symmetric(torch.tensor(spectrum))
    k = data.draw(st.integers(1, len(spectrum)))
    pairs = eigsh(A, k, which=which)
    assert pairs.status == "converged"
    # of two values of one magnitude and different signs either is right
    ours, truth = pairs.values, expected(A, k, which)
    if which == "LM":
        ours, truth = (x.abs().sort().values for x in (ours, truth))
    assert (ours - truth).abs().max() < 1e-12


def test_tolerance_is_kept_and_saves_products():
    A = MATRICES["60 negative"]
    loose, tight = (eigsh(A, 5, which="LA", tol=tol) for tol in (1e-3, 1e-10))
    assert loose.residuals.max() < 1e-3 * 2 * 1.01
    assert tight.residuals.max() < 1e-10 * 2 * 1.01
    assert loose.num_matvecs < tight.num_matvecs


def test_num_matvecs_are_counted():
    A = Watched(MATRICES["five-fold top"])
    pairs = eigsh(A, 6, which="LA", tol=1e-8)
    assert pairs.num_matvecs == A.seen[0]


def test_too_few_products_are_a_status():
    pairs = eigsh(MATRICES["60 negative"], 5, which="LA", maxiter=20, ncv=12)
    assert pairs.status == "maxiter"
    assert pairs.values.shape == (5,)
    V = pairs.vectors
    true = (MATRICES["60 negative"] @ V - V * pairs.values).norm(dim=0)
    assert error(pairs.residuals, true) < 1e-10
    assert pairs.num_matvecs <= 21


def test_the_same_call_gives_the_same_and_touches_no_global_generator():
    A = MATRICES["top and bottom multiple"]
    state = torch.get_rng_state()
    a, b = (eigsh(A, 4, tol=1e-8) for _ in range(2))
    assert torch.equal(a.vectors, b.vectors)
    assert torch.equal(torch.get_rng_state(), state)
    c = eigsh(A, 4, tol=1e-8, generator=torch.Generator().manual_seed(5))
    assert not torch.equal(a.vectors, c.vectors)


# --------------------------------------------------------------- kinds of operators


def test_whatever_is_an_operator():
    A = MATRICES["60 negative"]
    truth = expected(A, 4, "LM")
    sparse = assume_symmetric(scipy.sparse.csr_matrix(A.numpy()))
    for B in (A, A.numpy(), sparse, assume_symmetric(DenseLinearOperator(A).to_scipy())):
        assert error(eigsh(B, 4, tol=1e-10).values, truth) < 1e-10


def test_operators_over_blocks():
    d = [random(3, 4), random(5, seed=1), random(seed=2)]
    A = DiagonalLinearOperator(d)
    truth = torch.cat([b.flatten() for b in d]).sort().values[-3:]
    pairs = eigsh(A, 3, which="LA")
    assert error(pairs.values, truth) < 1e-12
    assert pairs.vectors.shape == (18, 3)
    B = BlockDiagonalLinearOperator([A, A])
    assert error(eigsh(B, 4, which="LA").values, truth[[-2, -2, -1, -1]]) < 1e-12


def test_an_operator_that_returns_its_input():
    """What comes back may be the basis itself."""
    operator = scipy.sparse.linalg.LinearOperator((50, 50), matvec=lambda v: v, dtype=float)
    pairs = eigsh(assume_symmetric(operator), 3)
    assert error(pairs.values, torch.ones(3)) < 1e-12


@pytest.mark.parametrize(("tol", "bound"), [(0.0, 1e-5), (1e-3, 1e-3)])
def test_single_precision(tol, bound):
    A = MATRICES["60 negative"].float()
    pairs = eigsh(A, 5, which="LA", tol=tol)
    assert pairs.status == "converged"
    assert pairs.vectors.dtype == pairs.values.dtype == torch.float32
    assert error(pairs.values, expected(A.double(), 5, "LA")) < bound


def test_half_precision():
    A = symmetric(torch.cat([linspace(0, 0.2, 195), linspace(1, 2, 5)]))
    A = A.bfloat16()
    pairs = eigsh(A, 3, which="LA", tol=1e-2)
    assert pairs.vectors.dtype == torch.bfloat16
    assert error(pairs.values, expected(A.double(), 3, "LA")) < 0.02


def test_a_basis_in_lower_precision():
    """Values are Rayleigh quotients: the square of what the vectors lack."""
    A = MATRICES["60 negative"]
    pairs = eigsh(A, 5, which="LA", basis_dtype=torch.float32)
    assert pairs.vectors.dtype == torch.float64
    assert error(pairs.values, expected(A, 5, "LA")) < 1e-11
    true = (A @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
    assert error(pairs.residuals, true) < 1e-6
    assert pairs.residuals.max() < 1e-5


def test_a_basis_on_another_device():
    A = MATRICES["rank 2"]
    pairs = eigsh(A, 2, basis_device="cpu")
    assert error(pairs.values, torch.tensor([-1.0, 2.0])) < 1e-12


def test_noise_of_the_matrix_is_in_the_residuals_and_in_the_status():
    """What the Lanczos relation cannot know, one more product finds."""
    A = MATRICES["60 negative"]

    class Noisy(Watched):
        def _matmat(self, M):
            (AM,) = super()._matmat(M)
            return [AM + 1e-10 * random(*AM.shape, seed=self.seen[0])]

    pairs = eigsh(Noisy(A), 3, which="SA", tol=1e-12)
    assert ((pairs.residuals > 1e-9) & (pairs.residuals < 1e-8)).all()
    assert pairs.status == "inaccurate"
    assert error(pairs.values, expected(A, 3, "SA")) < 1e-9


# ------------------------------------------------------- generalised, inside, inverse


@pytest.mark.parametrize("which", ["LA", "SA", "LM"])
def test_generalised_with_a_diagonal(which):
    A, d = MATRICES["60 negative"], random(500, seed=3).abs() + 0.01
    truth = torch.from_numpy(
        scipy.linalg.eigh(A.numpy(), torch.diag(d).numpy(), eigvals_only=True)
    )
    if which == "LM":
        truth = truth[truth.abs().argsort()[-4:]].sort().values
    pairs = eigsh(A, 4, which=which, tol=1e-12, P=DiagonalLinearOperator(d))
    truth = {"LA": truth[-4:], "SA": truth[:4], "LM": truth}[which]
    assert error(pairs.values, truth) < 1e-10
    V = pairs.vectors
    assert (V.T @ (d[:, None] * V) - torch.eye(4)).abs().max() < 1e-12
    true = (A @ V - d[:, None] * V * pairs.values).norm(dim=0)
    assert error(pairs.residuals, true) < 1e-3


def test_the_identity_as_the_inner_product():
    A = MATRICES["60 negative"]
    identity = IdentityLinearOperator(500, dtype=torch.float64)
    pairs = eigsh(A, 3, tol=1e-10, P=identity)
    assert error(pairs.values, expected(A, 3, "LM")) < 1e-10


def test_next_to_zero_of_a_psd_matrix():
    A = symmetric(linspace(0.01, 1, 100))
    pairs = eigsh(assume_psd(A), 3, which="SM", tol=1e-10)
    assert error(pairs.values, expected(A, 3, "SM")) < 1e-9


def test_next_to_zero_by_the_inverse():
    A = symmetric(linspace(-1, 1, 200) + 1e-3)
    inverse = torch.linalg.inv(A)
    pairs = eigsh(A, 4, which="SM", tol=1e-12, inverse=(inverse + inverse.T) / 2)
    assert error(pairs.values, expected(A, 4, "SM")) < 1e-10
    true = (A @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
    assert (pairs.residuals - true).abs().max() < 1e-14


def test_against_scipy():
    A = MATRICES["curvature"]
    theirs = scipy.sparse.linalg.eigsh(A.numpy(), 8, which="LA", tol=1e-10)[0]
    assert error(eigsh(A, 8, which="LA", tol=1e-10).values, numpy.sort(theirs)) < 1e-10
