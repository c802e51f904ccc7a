"""The inverse against dense matrices: solutions, inertia, log-determinant, symmetry."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.comparing import random
from tests.direct.chains import LOSSES, chain, dense, mlp, residual

# largest residual that is promised for a damping
PROMISED = {1.0: 1e-9, 0.1: 1e-9, 1e-3: 1e-9, 1e-6: 1e-8}
ACTIVATIONS = (nn.Tanh, nn.ReLU, nn.GELU, nn.Softplus)

# depth, width, samples: few and many for the width, shallow and deep
SIZES = ((2, 4, 1), (2, 6, 32), (3, 5, 3), (4, 4, 12))
EXTREMES = (
    ((20, 4, 2), nn.Tanh, True, "mse"),
    ((20, 4, 5), nn.ReLU, False, "cross-entropy"),
    ((2, 16, 1), nn.GELU, False, "huber"),
    ((2, 16, 20), nn.Softplus, True, "cross-entropy"),
)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_solves_and_counts(
    size: tuple[int, int, int], activation: type[nn.Module], loss: str
) -> None:
    # half of the combinations have a bias: one of two neighbours in each direction
    position = SIZES.index(size) + ACTIVATIONS.index(activation) + list(LOSSES).index(loss)
    keeps_its_promises(size, activation, position % 2 == 0, loss)


@pytest.mark.parametrize("case", EXTREMES, ids=str)
def test_deep_and_wide(case: tuple[tuple[int, int, int], Any, bool, str]) -> None:
    keeps_its_promises(*case)


def keeps_its_promises(
    size: tuple[int, int, int], activation: type[nn.Module], bias: bool, loss: str
) -> None:
    L, w, n = size
    p = mlp(L, w, n, activation, bias=bias, loss=loss)
    H, A = dense(p), chain(p)
    eigenvalues = torch.linalg.eigvalsh(H)
    b = random(len(H), 2)
    for damping, promised in PROMISED.items():
        inverse = A.inverse(damping)
        assert residual(H, damping, inverse @ b, b) <= promised
        assert inverse.num_negative() == int((eigenvalues < -damping).sum())
        expected = float((eigenvalues + damping).abs().log().sum())
        assert abs(inverse.logabsdet() - expected) <= 1e-9 * max(abs(expected), 1.0)
        u, v = b.unbind(1)
        gap = abs(float(u @ (inverse @ v) - v @ (inverse @ u)))
        assert gap <= 1e-9 * float(u.norm() * (inverse @ v).norm())


@settings(max_examples=25, deadline=None)
@given(
    L=st.integers(1, 6),
    w=st.integers(1, 5),
    n=st.integers(1, 8),
    loss=st.sampled_from(sorted(LOSSES)),
    log_damping=st.floats(-3, 1),
    negative=st.booleans(),
    curvature=st.sampled_from(["hessian", "ggn"]),
    seed=st.integers(0, 1000),
)
def test_inverts_what_it_multiplies(
    L: int,
    w: int,
    n: int,
    loss: str,
    log_damping: float,
    negative: bool,
    curvature: str,
    seed: int,
) -> None:
    p = mlp(L, w, n, loss=loss, seed=seed)
    H, A = dense(p, curvature), chain(p, curvature=curvature)
    damping = -(10**log_damping) if negative else 10**log_damping
    eigenvalues = torch.linalg.eigvalsh(H) + damping
    b = random(len(H), seed=seed)
    inverse = A.inverse(damping, rtol=None)
    x = inverse @ b
    # backward stable: the residual is small against what was added up
    scale = float(eigenvalues.abs().max() * x.norm() + b.norm())
    assert float((H @ x + damping * x - b).norm()) <= 1e-13 * scale
    if float(eigenvalues.abs().min()) > 1e-12 * float(eigenvalues.abs().max()):
        assert inverse.num_negative() == int((eigenvalues < 0).sum())


def test_the_gauss_newton_matrix_is_positive() -> None:
    p = mlp(4, 5, 3, loss="cross-entropy")
    A = chain(p, curvature="ggn")
    assert A.psd
    inverse = A.inverse(1e-3)
    assert inverse.psd
    assert inverse.num_negative() == 0


def test_no_damping_with_enough_data() -> None:
    p = mlp(2, 4, 30, nn.Softplus)
    H, A = dense(p), chain(p)
    b = random(len(H))[:, None]
    inverse = A.inverse(0.0)
    # a network with a loss in all outputs has no flat direction here
    assert residual(H, 0.0, inverse @ b, b) <= 1e-9
    assert inverse.num_negative() == int((torch.linalg.eigvalsh(H) < 0).sum()) > 0


def test_refinement_makes_the_residual_smaller() -> None:
    p = mlp(8, 4, 3)
    H, A = dense(p), chain(p)
    b = random(len(H), 3)
    plain, refined = (A.inverse(1e-6, refine=k) @ b for k in (0, 1))
    assert residual(H, 1e-6, refined, b) < 0.5 * residual(H, 1e-6, plain, b)


def test_the_same_derivatives_serve_every_damping() -> None:
    p = mlp(3, 4, 2)
    A = chain(p)
    H, b = dense(p), random(A.shape[0])[:, None]
    inverses = {damping: A.inverse(damping) for damping in (2.0, -0.3, 1e-2)}
    with torch.no_grad():
        p.model[0].weight.mul_(3.0)  # the operator is a value: nothing of this is seen
    for damping, inverse in inverses.items():
        assert residual(H, damping, inverse @ b, b) <= 1e-12
    assert residual(H, 0.5, A.inverse(0.5) @ b, b) <= 1e-12
