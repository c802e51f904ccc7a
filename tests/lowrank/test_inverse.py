"""Inverse, determinant and samples of the damped matrix."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.comparing import error, random

from .problems import factor, truth
from .test_spectrum import given_columns


def damped(D: Tensor, damping: float) -> Tensor:
    return D + damping * torch.eye(len(D), dtype=D.dtype)


@pytest.mark.parametrize("damping", [1e3, 1.0, 1e-3, 1e-6, 1e-9])
def test_solves(damping: float) -> None:
    inverse, D = factor().inverse(damping), damped(truth(), damping)
    b = random(len(D), 4)
    x = inverse @ b
    # backward stable: however small the damping, only rounding is left
    scale = torch.linalg.matrix_norm(D, 2) * x.norm(dim=0) + b.norm(dim=0)
    assert ((D @ x - b).norm(dim=0) <= 1e-14 * scale).all()
    assert inverse.psd
    assert inverse.damping == damping


@given(st.integers(1, 10), st.integers(1, 10), st.floats(-8, 3), st.integers(0, 2**31))
def test_law_for_any_columns(P: int, R: int, exponent: float, seed: int) -> None:
    V = random(P, R, seed=seed)
    damping = 10.0**exponent
    A, D = given_columns(V), damped(V @ V.T, damping)
    x = A.inverse(damping) @ (D @ (b := random(P, seed=1)))
    condition = 1 + float(V.norm()) ** 2 / damping
    assert (x - b).norm() <= 1e-14 * condition * b.norm()
    ratios = torch.linalg.svdvals(V).square() / damping
    expected = P * math.log(damping) + float(ratios.log1p().sum())
    assert abs(A.logdet(damping) - expected) <= 1e-9 * max(abs(expected), 1)


@pytest.mark.parametrize("damping", [10.0, 1e-2, 1e-7])
def test_logdet_trace_and_norm(damping: float) -> None:
    A, D = factor(), truth()
    expected = float(torch.logdet(damped(D, damping)))
    assert abs(A.logdet(damping) - expected) <= 1e-10 * abs(expected)
    assert A.inverse(damping).logdet() == A.logdet(damping)
    assert math.isclose(A.trace(), float(D.trace()), rel_tol=1e-13)
    assert math.isclose(A.frobenius_norm(), float(D.norm()), rel_tol=1e-13)


def test_samples_have_the_covariance() -> None:
    m, damping = 20_000, 0.2
    inverse, D = factor(3).inverse(damping), damped(truth(3), damping)
    x = inverse.sample(m, generator=torch.Generator().manual_seed(0))
    assert x.shape == (len(D), m)
    # whitened, the entries of the covariance have errors of known size
    W = torch.linalg.cholesky(D)
    white = W.T @ x
    S = white @ white.T / m
    errors = (S - torch.eye(len(D), dtype=D.dtype)) * math.sqrt(m)
    errors.diagonal().div_(math.sqrt(2))
    assert errors.abs().max() <= 5
    assert (white.mean(1) * math.sqrt(m)).abs().max() <= 5


def test_samples_come_from_the_generator() -> None:
    inverse = factor().inverse(1.0)
    one, two = (
        inverse.sample(2, generator=torch.Generator().manual_seed(1)) for _ in range(2)
    )
    assert (one == two).all()
    state = torch.get_rng_state()
    other = inverse.sample(2)
    assert (torch.get_rng_state() == state).all()
    assert not (other == one).any()


def test_single_precision_needs_a_gram_matrix_in_double() -> None:
    with pytest.raises(ValueError, match=r"rounding to torch.float32.*gram_dtype"):
        factor(dtype=torch.float32).inverse(1e-9)
    inverse = factor(dtype=torch.float32, gram_dtype=torch.float64).inverse(1e-4)
    D = damped(truth(), 1e-4)
    b = random(len(D))
    x = (inverse @ b.float()).double()
    assert x.dtype == torch.float64
    assert (D @ x - b).norm() <= 1e-5 * torch.linalg.matrix_norm(D, 2) * x.norm()
    expected = float(torch.logdet(D))
    assert abs(inverse.logdet() - expected) <= 1e-4 * abs(expected)


@pytest.mark.parametrize(
    ("damping", "kind", "message"),
    [
        (0.0, ValueError, "positive damping, got 0.0.*singular"),
        (-1.0, ValueError, "positive damping"),
        (math.nan, ValueError, "positive damping"),
        (math.inf, ValueError, "positive damping"),
        (1e-20, ValueError, "at least .*what rounding"),
        ("1", TypeError, "damping as a number, got str"),
        (None, TypeError, "damping as a number, got NoneType"),
        (True, TypeError, "damping as a number, got bool"),
    ],
)
def test_bad_damping(damping: object, kind: type[Exception], message: str) -> None:
    A = factor()
    for method in (A.inverse, A.logdet):
        with pytest.raises(kind, match=message):
            method(damping)  # type: ignore[arg-type]


def test_damping_may_be_a_tensor() -> None:
    A, b = factor(), random(truth().shape[0])
    assert error(A.inverse(torch.tensor(0.5)) @ b, A.inverse(0.5) @ b) == 0


def test_bad_samples() -> None:
    inverse = factor().inverse(1.0)
    with pytest.raises(ValueError, match="num_samples of at least 1"):
        inverse.sample(0)
    with pytest.raises(TypeError, match="num_samples as an integer"):
        inverse.sample(None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"torch\.Generator"):
        inverse.sample(1, generator=3)  # type: ignore[arg-type]
