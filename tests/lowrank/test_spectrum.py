"""Eigenvalues and eigenvectors, against LAPACK on the dense matrix."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Size, Tensor, nn

from curvop.linearized import Dense, Rows
from curvop.lowrank import GramFactor
from curvop.lowrank.columns import FactorColumnsLinearOperator, Source
from curvop.operators import Space
from tests.comparing import error

from .problems import factor, images, network, operator, truth

EPS = torch.finfo(torch.float64).eps


def given_columns(V: Tensor, gram_dtype: torch.dtype | None = None) -> GramFactor:
    """The factor with these columns ``[P, R]``."""
    rows = Rows((Dense(V.T[:, None].contiguous()),), V.shape[1], 1)
    columns = FactorColumnsLinearOperator(
        [Source.kept(rows)],
        Space((Size((len(V),)),)),
        dtype=V.dtype,
        device=V.device,
    )
    return GramFactor(columns, gram_dtype or V.dtype)


def check(A: GramFactor, D: Tensor, k: int | None = None) -> None:
    pairs = A.eigh(k)
    expected = torch.linalg.eigvalsh(D)
    largest, n = float(expected[-1]), len(pairs.values)
    assert (pairs.values - expected[-n:]).abs().max() <= 1e-13 * largest
    if k is None and n < len(expected):  # what is left out is zero
        assert expected[:-n].abs().max() <= 1e-12 * largest
    eye = torch.eye(n, dtype=D.dtype)
    assert (pairs.vectors.T @ pairs.vectors - eye).abs().max() <= 1e-12
    gap = torch.linalg.vector_norm(D @ pairs.vectors - pairs.vectors * pairs.values, dim=0)
    assert gap.max() <= 1e-12 * largest
    # what is told of the residuals is true, as far as rounding allows
    assert (pairs.residuals - gap).abs().max() <= 1e-13 * largest
    assert pairs.status == "converged"
    assert pairs.num_matvecs == n


@pytest.mark.parametrize("k", [None, 1, 4, 14])
def test_of_a_network(k: int | None) -> None:
    A, D = factor(), truth()
    check(A, D, k)
    assert len(A.eigh(k).values) == (k or 14)  # 7 data with 2 free classes each


def test_all_eigenvalues() -> None:
    values = torch.linalg.eigvalsh(truth())
    got = factor().eigvalsh()
    assert len(got) == 14
    assert error(got, values[-14:]) <= 1e-13


@given(
    st.integers(1, 12),
    st.integers(1, 6),
    st.lists(st.floats(-6.0, 3.0), min_size=1, max_size=6),
    st.integers(0, 2**31),
)
def test_law_for_any_columns(P: int, R: int, exponents: list[float], seed: int) -> None:
    """Also more columns than rows, dependent ones, and singular values far apart."""
    draw = torch.Generator().manual_seed(seed)
    left, right = (
        torch.randn(n, len(exponents), generator=draw, dtype=torch.float64) for n in (P, R)
    )
    scales = 10.0 ** torch.tensor(exponents, dtype=torch.float64)
    V = left * scales @ right.T
    check(given_columns(V), V @ V.T)


def test_the_noise_of_a_gram_matrix_is_left_out() -> None:
    Q, _ = torch.linalg.qr(torch.randn(40, 6, dtype=torch.float64))
    scales = torch.tensor([1e4, 1.0, 1e-2, 1e-6, 1e-12, 0.0], dtype=torch.float64)
    values = given_columns(Q * scales).eigvalsh()
    assert len(values) == 3
    assert error(values, scales[:3].square().flip(0)) <= 1e-12


def test_a_zero_matrix_has_no_eigenvalues() -> None:
    A = given_columns(torch.zeros(5, 3, dtype=torch.float64))
    pairs = A.eigh(2)
    assert pairs.values.shape == pairs.residuals.shape == (0,)
    assert pairs.vectors.shape == (5, 0)
    assert A.eigvalsh().shape == (0,)


def test_single_precision_with_a_gram_matrix_in_double() -> None:
    """Small eigenvalues that single precision cannot tell from its noise."""
    draw = torch.Generator().manual_seed(0)
    Q, _ = torch.linalg.qr(torch.randn(300, 5, generator=draw, dtype=torch.float64))
    scales = torch.tensor([1.0, 1e-1, 1e-2, 1e-3, 1e-4], dtype=torch.float64)
    U, _ = torch.linalg.qr(torch.randn(5, 5, generator=draw, dtype=torch.float64))
    V = (Q * scales @ U.T).float()
    exact = torch.linalg.svdvals(V.double()).square().flip(0)
    values = given_columns(V, torch.float64).eigvalsh()
    assert values.dtype == torch.float64
    assert ((values - exact).abs() <= 1e-6 * exact).all()
    pairs = given_columns(V, torch.float64).eigh()
    assert pairs.values.dtype == torch.float32
    roots = pairs.values.double().sqrt() - exact.sqrt()
    assert roots.abs().max() <= 1e-6  # backward stable: of the largest singular value
    assert (pairs.vectors.T @ pairs.vectors - torch.eye(5)).abs().max() <= 1e-5
    assert len(given_columns(V).eigvalsh()) < 5


@pytest.mark.parametrize("gram_dtype", [torch.float32, torch.float64])
def test_single_precision_knows_the_rank(gram_dtype: torch.dtype) -> None:
    A, D = factor(30, torch.float32, gram_dtype=gram_dtype), truth(30)
    exact = torch.linalg.eigvalsh(D)
    pairs = A.eigh()
    rank = int((exact > 1e-14 * exact[-1]).sum())
    assert len(pairs.values) <= rank
    if gram_dtype == torch.float64:
        assert len(pairs.values) == rank == 50
    n = len(pairs.values)
    assert (pairs.values - exact[-n:]).abs().max() <= 1e-5 * exact[-1]
    gap = D @ pairs.vectors.double() - pairs.vectors.double() * pairs.values
    assert gap.norm(dim=0).max() <= 1e-5 * exact[-1]
    assert (pairs.vectors.T @ pairs.vectors - torch.eye(n)).abs().max() <= 1e-4


def test_deep_and_wide_networks_with_many_columns() -> None:
    model = network(
        nn.Linear(5, 20), nn.Tanh(), nn.Linear(20, 20), nn.Tanh(), nn.Linear(20, 3)
    )
    X, _ = images(40)
    G = operator(model, nn.MSELoss(), [(X, torch.zeros(40, 3, dtype=X.dtype))])
    check(G.factor(), G.to_dense(), 20)


@pytest.mark.parametrize(
    ("k", "kind", "message"),
    [
        (0, ValueError, "k of at least 1, got 0"),
        (2.0, TypeError, "k as an integer, got float"),
        (True, TypeError, "k as an integer, got bool"),
    ],
)
def test_bad_k(k: object, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        factor().eigh(k)  # type: ignore[arg-type]
