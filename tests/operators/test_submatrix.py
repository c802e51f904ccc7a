"""Rows and columns: as NumPy would take them."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from curvop import DenseLinearOperator, DiagonalLinearOperator, LinearOperator
from tests.comparing import error, random

M, N = 5, 7
D = random(M, N)
A = DenseLinearOperator(D)
laws = settings(max_examples=80, deadline=None, derandomize=True)


def indices(n: int) -> st.SearchStrategy[Any]:
    """Everything but integers and names."""
    positions = st.lists(st.integers(-n, n - 1), min_size=1, max_size=2 * n)
    masks = st.lists(st.booleans(), min_size=n, max_size=n)
    return st.one_of(
        st.slices(n),
        positions,
        positions.map(numpy.array),
        positions.map(torch.tensor),
        masks,
        masks.map(numpy.array),
        masks.map(torch.tensor),
    )


def taken(n: int, index: Any) -> numpy.ndarray:
    """Flat positions by NumPy's rules."""
    return numpy.arange(n)[index if isinstance(index, slice) else numpy.asarray(index)]


@laws
@given(indices(M), indices(N))
def test_takes_what_numpy_takes(rows: Any, cols: Any) -> None:
    S = A[rows, cols]
    expected = D.numpy()[numpy.ix_(taken(M, rows), taken(N, cols))]
    assert S.shape == expected.shape
    assert error(S.to_dense(), expected) <= 1e-14
    x, y = random(S.shape[1]), random(S.shape[0])
    assert error(S @ x, expected @ x.numpy()) <= 1e-13
    assert error(y @ S, expected.T @ y.numpy()) <= 1e-13


@laws
@given(indices(M), indices(N))
def test_transposing_exchanges_rows_and_columns(rows: Any, cols: Any) -> None:
    assert torch.equal(A[rows, cols].T.to_dense(), A.T[cols, rows].to_dense())


@laws
@given(indices(N), st.data())
def test_a_submatrix_of_a_submatrix_is_a_submatrix(outer: Any, data: st.DataObject) -> None:
    once = taken(N, outer)
    inner = data.draw(st.slices(len(once)))
    twice = A[:, outer][:, inner]
    assert torch.equal(twice.to_dense(), A[:, once[inner]].to_dense())


@laws
@given(indices(N))
def test_principal_submatrices_keep_tags(index: Any) -> None:
    G = DenseLinearOperator(D.T @ D, psd=True)
    principal = G[index, index]
    assert principal.psd
    assert principal.T is principal
    if len(taken(N, index)):
        assert float(torch.linalg.eigvalsh(principal.to_dense()).min()) >= -1e-12


def test_other_submatrices_lose_tags() -> None:
    G = DenseLinearOperator(D.T @ D, psd=True)
    assert not G[:3, 1:4].symmetric
    assert not G[[0, 1], [1, 0]].symmetric


def test_blocks_of_a_selection_partition_the_matrix() -> None:
    rows, cols = (slice(None, 2), slice(2, None)), (slice(None, 3), slice(3, None))
    whole = torch.cat([torch.cat([A[r, c].to_dense() for c in cols], 1) for r in rows])
    assert torch.equal(whole, D)


@pytest.mark.parametrize("one", [3, -2, numpy.int64(3), torch.tensor(3)])
def test_an_integer_drops_its_axis(one: Any) -> None:
    assert torch.equal(A[:, one], D[:, int(one)])
    assert torch.equal(A[one], D[int(one)])
    assert torch.equal(A[one, 1:3], D[int(one), 1:3])
    assert A[one, one].shape == ()
    assert float(A[one, one]) == float(D[int(one), int(one)])


def test_rows_alone() -> None:
    assert torch.equal(A[1:3].to_dense(), D[1:3])
    assert torch.equal(A[[0, 4]].to_dense(), D[[0, 4]])


def test_nothing_selected() -> None:
    S = A[[], :]
    assert S.shape == (0, N)
    assert (S @ random(N)).shape == (0,)
    assert torch.equal(random(0) @ S, torch.zeros(N, dtype=torch.float64))
    assert A[:, 3:3].to_dense().shape == (M, 0)


@pytest.fixture
def named() -> LinearOperator:
    blocks = [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]]), torch.tensor([4.0])]
    return DiagonalLinearOperator(blocks, names=["weight", "bias", "scale"])


def test_names(named: LinearOperator) -> None:
    assert torch.equal(named["bias", "bias"].to_dense(), torch.tensor([[3.0]]))
    both = named[["scale", "weight"], :]
    expected = torch.tensor([[0, 0, 0, 4.0], [1, 0, 0, 0], [0, 2, 0, 0]])
    assert torch.equal(both.to_dense(), expected)
    assert named["weight"].shape == (2, 4)


@pytest.mark.parametrize(
    ("index", "kind", "message"),
    [
        (M, IndexError, r"\[-5, 5\)"),
        ((slice(None), [0, N]), IndexError, r"\[-7, 7\)"),
        ((slice(None), -N - 1), IndexError, r"\[-7, 7\)"),
        ([True, False], ValueError, "mask of length 5, got 2"),
        (torch.ones(N, dtype=torch.bool), ValueError, "mask of length 5, got 7"),
        (1.5, TypeError, "one-dimensional integer positions"),
        ([0.0, 1.0], TypeError, "one-dimensional integer positions"),
        ([[0, 1], [1, 0]], TypeError, "one-dimensional"),
        (None, TypeError, "got NoneType"),
        ({1: 2}, TypeError, "got dict"),
        ("weight", ValueError, "no names"),
        ((0, 0, 0), IndexError, "two indices, got 3"),
    ],
)
def test_refusals(index: Any, kind: Any, message: str) -> None:
    with pytest.raises(kind, match=message):
        A[index]


def test_unknown_names(named: LinearOperator) -> None:
    with pytest.raises(ValueError, match=r"'weight', 'bias', 'scale'.*got 'wieght'"):
        named[:, "wieght"]
