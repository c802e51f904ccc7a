"""Pivots that are singular although the matrix is not."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from curvop import SingularSystemError
from curvop.direct.block_elimination import GROWTH, factorise
from curvop.direct.inverse import ChainInverseLinearOperator
from curvop.direct.pivots import eliminate
from tests.cases.problem import Problem
from tests.comparing import random
from tests.direct.chains import chain, dense, mlp, residual


def inverse(p: Problem, damping: float, growth: float) -> ChainInverseLinearOperator:
    A = chain(p)
    return ChainInverseLinearOperator(
        A._system,
        A.input_space,
        damping,
        refine=1,
        rtol=None,
        dtype=A.dtype,
        growth=growth,
    )


def counts(p: Problem, damping: float) -> list[int]:
    """Negative eigenvalues of each pivot, none of them delayed."""
    return [s.num_negative for s in factorise(chain(p)._system, damping, math.inf)]


def singular_pivot(p: Problem) -> float:
    """A damping at which one pivot is singular, and the matrix is not.

    There an eigenvalue of a pivot passes through zero, its inertia changes, and that of
    a pivot upstream changes the other way: the total stays.
    """
    grid = torch.logspace(-3, 0.5, 60).tolist()
    for low, high in itertools.pairwise(grid):
        below, above = counts(p, low), counts(p, high)
        if below != above and sum(below) == sum(above):
            break
    else:
        raise AssertionError("no pivot changes its sign")
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if counts(p, middle) == below else (low, middle)
    return high


@pytest.mark.parametrize("seed", [0, 1, 4])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_a_singular_pivot_is_delayed(activation: type[nn.Module], seed: int) -> None:
    p = mlp(4, 4, 2, activation, seed=seed)
    for q in p.tensors:  # far from a minimum the Hessian is indefinite
        q.data.mul_(2.0)
    damping, H = singular_pivot(p), dense(p)
    assert float((torch.linalg.eigvalsh(H) + damping).abs().min()) > 1e-6
    b = random(len(H), 3)
    delayed, at_once = inverse(p, damping, GROWTH), inverse(p, damping, math.inf)
    assert residual(H, damping, delayed @ b, b) <= 1e-10
    assert delayed.num_negative() == int((torch.linalg.eigvalsh(H) < -damping).sum())
    # with delaying switched off the promise is broken
    assert not residual(H, damping, at_once @ b, b) <= 1e-10


def test_small_damping_needs_delayed_pivots() -> None:
    p = mlp(8, 6, 3)
    H, b = dense(p), random(8 * 42, 2)
    assert residual(H, 1e-6, inverse(p, 1e-6, GROWTH) @ b, b) <= 1e-8
    assert not residual(H, 1e-6, inverse(p, 1e-6, math.inf) @ b, b) <= 1e-8


def block(*eigenvalues: float) -> torch.Tensor:
    Q = torch.linalg.qr(random(len(eigenvalues), len(eigenvalues)))[0]
    return Q @ torch.tensor(eigenvalues).double().diag() @ Q.T


@pytest.mark.parametrize(
    "eigenvalues",
    [(1.0, 2.0, 3.0), (1.0, -2.0, 3.0), (-1.0, -2.0, 1e-3, 4.0), (1.0, 1e-9, -1.0)],
)
def test_elimination_is_the_schur_complement(eigenvalues: tuple[float, ...]) -> None:
    M, G = block(*eigenvalues), random(len(eigenvalues), 5, seed=1)
    pivot, correction, N, D = eliminate(M, G, 100.0, "here")
    # what is left after what was delayed is eliminated, too
    rest = correction + N.T @ (N / D[:, None])
    expected = G.T @ torch.linalg.solve(M, G)
    assert float((rest - expected).abs().max()) <= 1e-6 * float(expected.abs().max())
    assert len(D) == sum(abs(e) < 1e-2 for e in eigenvalues) == pivot.num_delayed
    total = pivot.num_negative + int((D < 0).sum())
    assert total == sum(e < 0 for e in eigenvalues)
    logabsdet = pivot.logabsdet + float(D.abs().log().sum())
    assert abs(logabsdet - sum(math.log(abs(e)) for e in eigenvalues)) <= 1e-6


def test_cancelling_corrections_are_seen() -> None:
    """Two tiny eigenvalues of opposite sign cancel in ``Gᵀ M⁻¹ G``, not in ``M⁻¹ G``."""
    M = torch.tensor([[1e-10, 0.0], [0.0, -1e-10]]).double()
    G = torch.ones(2, 1).double()
    assert eliminate(M, G, 100.0, "here").pivot.num_delayed == 2


def test_a_zero_pivot_that_is_coupled_to_nothing_is_an_error() -> None:
    M = torch.zeros(2, 2).double()
    with pytest.raises(SingularSystemError, match="stage 7 has a pivot that is zero"):
        eliminate(M, torch.zeros(2, 3).double(), 100.0, "stage 7")


def test_an_infinite_pivot_is_an_error() -> None:
    M = torch.full((2, 2), math.inf).double()
    with pytest.raises(SingularSystemError, match="stage 7 is not finite"):
        eliminate(M, torch.zeros(2, 3).double(), 100.0, "stage 7")
