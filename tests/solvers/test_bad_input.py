"""What solvers refuse, and what they say."""

from __future__ import annotations

import numpy
import pytest
import scipy.sparse
import torch

from curvop import (
    CGInverseLinearOperator,
    DenseLinearOperator,
    LSMRInverseLinearOperator,
    MINRESInverseLinearOperator,
    NeumannInverseLinearOperator,
    assume_psd,
    assume_symmetric,
    cg,
    cg_shifts,
    jacobi_preconditioner,
    lsmr,
    minres,
    nystrom_preconditioner,
)
from tests.comparing import random
from tests.solvers.matrices import Watched, indefinite, positive, spoiled

N = 12
P = positive(N, 10)
b = random(N)


def damped_path(A, b, **options):
    return cg_shifts(A, b, [0.0, 1.0], **options)


SOLVERS = [cg, minres, lsmr, damped_path]
every_solver = pytest.mark.parametrize("solver", SOLVERS, ids=lambda f: f.__name__)


@pytest.mark.parametrize("solver", [cg, damped_path, CGInverseLinearOperator])
def test_untagged_for_cg(solver):
    arguments = (P,) if solver is CGInverseLinearOperator else (P, b)
    with pytest.raises(ValueError, match=r"positive semi-definite.*assume_psd\(A\)"):
        solver(*arguments)


@pytest.mark.parametrize("solver", [minres, MINRESInverseLinearOperator])
def test_untagged_for_minres(solver):
    A = scipy.sparse.csr_array(P.numpy())
    arguments = (A,) if solver is MINRESInverseLinearOperator else (A, b)
    with pytest.raises(ValueError, match=r"symmetric operator.*assume_symmetric\(A\)"):
        solver(*arguments)


def test_untagged_for_nystrom():
    with pytest.raises(ValueError, match="assume_psd"):
        nystrom_preconditioner(P, 2)


@pytest.mark.parametrize("solver", [cg, minres])
def test_rectangular(solver):
    with pytest.raises(ValueError, match=r"square matrix, got \(3, 5\).*lsmr"):
        solver(random(3, 5), random(3))


@every_solver
@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        (random(N + 1), ValueError, r"Expected shape \(12,\) or \(12, K\), got \(13,\)"),
        (random(2, N), ValueError, r"got \(2, 12\)"),
        (random(N).float(), TypeError, r"float64, got torch.float32"),
        (random(N).numpy(), TypeError, "torch.from_numpy"),
        ([random(N), random(N)], ValueError, "1 blocks"),
        ({"w": random(N)}, TypeError, "no names"),
        (torch.full((N,), torch.nan).double(), ValueError, "finite right-hand side b"),
        (torch.full((N,), torch.inf).double(), ValueError, "finite right-hand side b"),
        (random(N).to(torch.complex128), TypeError, "real right-hand side"),
    ],
)
def test_wrong_right_hand_sides(solver, wrong, kind, message):
    with pytest.raises(kind, match=message):
        solver(assume_psd(P), wrong)


def test_the_column_that_is_not_finite_is_named():
    B = random(N, 3)
    B[2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"nan in columns \[1\]"):
        cg(assume_psd(P), B)


@pytest.mark.parametrize("solver", [cg, minres, lsmr])
@pytest.mark.parametrize(
    ("x0", "kind", "message"),
    [
        (random(N, 1), ValueError, "x0 as a vector, as b is, got 1 columns"),
        (random(N - 1), ValueError, "got .11"),
        (torch.full((N,), torch.nan).double(), ValueError, "finite initial guess x0"),
        (random(N).float(), TypeError, "float32"),
    ],
)
def test_wrong_initial_guesses(solver, x0, kind, message):
    with pytest.raises(kind, match=message):
        solver(assume_psd(P), b, x0=x0)


@every_solver
@pytest.mark.parametrize(
    ("option", "value", "kind", "message"),
    [
        ("rtol", -1e-3, ValueError, "rtol as a finite number of at least 0"),
        ("rtol", float("nan"), ValueError, "rtol"),
        ("rtol", "small", TypeError, "rtol as a real number, got str"),
        ("atol", -1.0, ValueError, "atol"),
        ("maxiter", 0, ValueError, "maxiter of at least 1, got 0"),
        ("maxiter", -3, ValueError, "maxiter"),
        ("maxiter", 2.5, TypeError, "maxiter as an integer, got float"),
    ],
)
def test_options_out_of_range(solver, option, value, kind, message):
    with pytest.raises(kind, match=message):
        solver(assume_psd(P), b, **{option: value})


def test_more_options_out_of_range():
    with pytest.raises(ValueError, match="damp"):
        lsmr(P, b, damp=-1.0)
    with pytest.raises(ValueError, match="shift"):
        minres(P, b, shift=float("inf"))
    for build in (CGInverseLinearOperator, MINRESInverseLinearOperator):
        with pytest.raises(ValueError, match="rtol"):
            build(assume_psd(P), rtol=-1)
    with pytest.raises(ValueError, match="maxiter"):
        LSMRInverseLinearOperator(P, maxiter=0)
    for option in ({"num_terms": 0}, {"scale": 0.0}, {"scale": -1.0}, {"rtol": 2.0}):
        with pytest.raises(ValueError, match=r"num_terms|scale"):
            NeumannInverseLinearOperator(P, **option)
    with pytest.raises(ValueError, match="equal domain and codomain"):
        NeumannInverseLinearOperator(random(3, 5))


@pytest.mark.parametrize("solver", [cg, minres])
@pytest.mark.parametrize(
    ("M", "kind", "message"),
    [
        (P, ValueError, r"The preconditioner M= needs .* assume_psd"),
        (assume_psd(positive(5, 2)), ValueError, r"shape \(12, 12\), got \(5, 5\)"),
        (assume_psd(P.float()), TypeError, "float64, got torch.float32"),
        ("jacobi", TypeError, "got str"),
        (assume_psd(-P), ValueError, "positive definite preconditioner"),
    ],
)
def test_wrong_preconditioners(solver, M, kind, message):
    with pytest.raises(kind, match=message):
        solver(assume_psd(P), b, M=M)


@pytest.mark.parametrize("solver", [cg, damped_path, minres])
@pytest.mark.parametrize("size", [1e-4, 1e-3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_operator_that_is_not_symmetric_is_found_out(solver, size, dtype):
    coarser = 1000 if dtype == torch.float32 else 1  # rounding hides what is smaller
    A = 20 * P + coarser * size * random(N, N)
    A = assume_psd(scipy.sparse.csr_array(A.to(dtype).numpy()))
    with pytest.raises(ValueError, match=r"symmetric.*lsmr"):
        solver(A, b.to(dtype), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(5))
def test_symmetric_operators_are_not_accused(seed, dtype):
    A = positive(200, 1e6, seed).to(dtype)
    cg(assume_psd(A), random(200, 3, seed=seed).to(dtype), maxiter=50)
    A = indefinite(200, 60, 1e-4).to(dtype)
    minres(A, random(200, 3, seed=seed).to(dtype), maxiter=50)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [1, 2, 5])
def test_what_is_not_finite_is_named_with_the_iteration(value, at):
    for solver, psd in ((cg, True), (minres, False), (damped_path, True)):
        A = Watched(P, psd=psd, at={at: spoiled(value)})
        with pytest.raises(FloatingPointError, match=f"in iteration {at}"):
            solver(A, b, rtol=1e-9)
    # lsmr starts with two products, with Aᵀ, and takes two for an iteration
    A = Watched(P, at={2 * at + 1: spoiled(value)})
    with pytest.raises(FloatingPointError, match=f"in iteration {at}"):
        lsmr(A, b, rtol=1e-9)


def test_nystrom_and_jacobi():
    A = assume_psd(P)
    for rank, kind in ((0, ValueError), (N + 1, ValueError), (2.0, TypeError)):
        with pytest.raises(kind, match="rank"):
            nystrom_preconditioner(A, rank)
    with pytest.raises(TypeError, match=r"torch\.Generator"):
        nystrom_preconditioner(A, 2, generator=3)
    with pytest.raises(ValueError, match="other than zero"):
        nystrom_preconditioner(assume_psd(torch.zeros(3, 3)), 2)
    with pytest.raises(FloatingPointError, match="finite"):
        nystrom_preconditioner(Watched(P, at={1: spoiled(float("nan"))}), 2)
    for call in (
        lambda: nystrom_preconditioner(A, 2, damping=-1.0),
        lambda: jacobi_preconditioner(A, damping=-1.0),
    ):
        with pytest.raises(ValueError, match="damping"):
            call()
    with pytest.raises(ValueError, match="positive entries"):
        jacobi_preconditioner(A, -torch.ones(N).double())
    with pytest.raises(ValueError, match="finite"):
        jacobi_preconditioner(A, torch.full((N,), torch.nan).double())
    with pytest.raises(ValueError, match="columns"):
        jacobi_preconditioner(A, torch.ones(N, 2).double())
    with pytest.raises(ValueError, match="at least 2"):
        jacobi_preconditioner(A, num_probes=1)
    with pytest.raises(TypeError, match=r"torch\.Generator"):
        jacobi_preconditioner(A, generator=numpy.random.default_rng())
    with pytest.raises(ValueError, match="square"):
        jacobi_preconditioner(random(3, 4))


def test_another_device():
    A = DenseLinearOperator(P, psd=True)
    for x in (b.to("meta"), [b.to("meta")]):
        with pytest.raises(ValueError, match="on cpu, got one on meta"):
            cg(A, x)


def test_tags_are_believed_until_a_product_tells():
    # nothing is multiplied to find out what a tag says
    A = Watched(P)
    assume_symmetric(A)
    CGInverseLinearOperator(A)
    assert A.products == 0
