"""Outer products of layers against the columns that they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Size, nn

from curvop.layers import Calls
from curvop.linearized import rows
from curvop.linearized.layer_rows import rows_of_layers
from curvop.linearized.row_derivation import rows_by_vmap
from curvop.linearized.rows import Dense, Outer, Rows, gram
from curvop.risk import Parameters
from tests.comparing import error, random
from tests.curvature import dense
from tests.lowrank.problems import network, operator


def outer(G: int, N: int, R: int, T: int, m: int, d: int, seed: int) -> Outer:
    z, D = random(G, N, T, d, seed=seed), random(G, N, R, T, m, seed=seed + 1)
    return Outer(z, D, Size((G * m, d)))


sizes = st.integers(1, 3)


@given(sizes, sizes, sizes, sizes, sizes, sizes, st.integers(1, 200))
def test_products(G: int, N: int, R: int, T: int, m: int, d: int, at_once: int) -> None:
    part = outer(G, N, R, T, m, d, seed=0)
    entries = Dense(part.dense().view(N, R, G * m, d))
    v, u = random(4, G * m, d, seed=2), random(N, R, 4, seed=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "AT_ONCE", at_once)
        assert error(part.jvp(v), entries.jvp(v)) <= 1e-13
        assert error(part.vjp(u), entries.vjp(u)) <= 1e-13


@given(sizes, sizes, sizes, sizes, sizes, sizes, sizes, sizes, st.integers(1, 200))
def test_gram(
    G: int, N: int, R: int, T: int, T_b: int, R_b: int, m: int, d: int, at_once: int
) -> None:
    a, b = outer(G, N, R, T, m, d, seed=0), outer(G, 2, R_b, T_b, m, d, seed=5)
    expected = torch.einsum("nrp,msp->nrms", a.dense(), b.dense())
    shape = (G * m, d)
    entries = Dense(a.dense().view(N, R, *shape)), Dense(b.dense().view(2, R_b, *shape))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "AT_ONCE", at_once)
        for x in (a, entries[0]):
            for y in (b, entries[1]):
                assert error(gram(x, y, torch.float64), expected) <= 1e-13
        assert error(rows._product_of_factors(a, b), expected) <= 1e-13
        own = torch.einsum("nrp,msp->nrms", a.dense(), a.dense())
        for x in (a, entries[0]):
            assert error(gram(x, x, torch.float64), own) <= 1e-13


CONVOLUTIONS = [
    (nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), (4, 7)),
    (nn.Conv1d(2, 3, 2, dilation=3, bias=False), (2, 8)),
    (nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5)),
    (nn.Conv1d(2, 3, 3, padding="same"), (2, 5)),
    (nn.Conv2d(2, 4, (3, 2), stride=(1, 2), padding=(1, 0), dilation=(1, 2)), (2, 4, 6)),
    (nn.Conv2d(3, 3, 2, groups=3, padding=1), (3, 3, 3)),
    (nn.Conv2d(2, 2, 2, padding_mode="reflect", padding=1), (2, 3, 3)),
    (nn.Conv3d(2, 4, 2, stride=(2, 1, 1), padding=(0, 1, 0), groups=2), (2, 4, 3, 3)),
    (nn.ConvTranspose1d(2, 3, 3, stride=2), (2, 4)),
]


@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("threshold", ["outer", "stored", "as it pays"])
def test_convolutions(
    layer: nn.Module, shape: tuple[int, ...], threshold: str, monkeypatch: Any
) -> None:
    if threshold != "as it pays":
        monkeypatch.setattr(Outer, "pays", property(lambda _: threshold == "outer"))
    model = network(layer, nn.Tanh(), nn.Flatten())
    X = dense.normal(3, *shape)
    y = dense.normal(*model(X).shape, seed=3)
    D = dense.ggn(model, nn.MSELoss(), list(model.parameters()), X, y)
    A = operator(model, nn.MSELoss(), [(X[:1], y[:1]), (X[1:], y[1:])]).factor()
    assert error(A.to_dense(), D) <= 1e-12
    V = A.V.to_dense()
    assert error(A.gram(), V.T @ V) <= 1e-12


def test_layers_are_kept_as_outer_products_where_that_pays() -> None:
    model = network(nn.Linear(30, 20), nn.Tanh(), nn.Linear(20, 4))
    X = dense.normal(6, 30)
    A = operator(model, nn.MSELoss(), [(X, dense.normal(6, 4))]).factor()
    ((_, kept),) = A.V._pieces()
    assert [type(part) for part in kept.parts] == [Outer, Dense, Outer, Dense]
    assert kept.nbytes < A.V.shape[0] * A.V.shape[1] * 8 / 5


def test_rows_of_layers_are_those_of_their_parameters() -> None:
    model = network(
        nn.Conv1d(4, 4, 3, groups=2), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(12, 3)
    )
    X, params = dense.normal(5, 4, 5), list(model.parameters())
    with Calls(params, every=True) as noted:
        prediction = model(X)
    S = [random(2, *prediction.shape, seed=1)]
    layers = rows_of_layers(noted.calls, [prediction], S, 5)
    parts = layers.by_parameter()
    both = layers, Rows(tuple(parts[i] for i in range(len(params))), 5, 2)
    V, U = [random(4, *p.shape, seed=2) for p in params], random(5, 2, 4, seed=3)
    shapes = [p.shape for p in params]
    one, other = (each.jvp(V) for each in both)
    assert error(one, other) <= 1e-13
    for a, b in zip(*(each.vjp(U, shapes) for each in both), strict=True):
        assert error(a, b) <= 1e-13


def test_inputs_of_all_data_are_told_from_those_of_each() -> None:
    """A table that belongs to no datum, as long as the parts that the data are cut into."""
    w, table = random(3, seed=0), random(1, 3, seed=1)
    at = Parameters((w,), None, lambda p, X: X[0] @ (X[1] * p[0]).T, functional=True)
    X, S = random(2, 3, seed=2), random(4, 2, 1, seed=3)
    found = list(rows_by_vmap(at, (X, table), S, [0], 1))
    assert [len(J) for (J,) in found] == [1, 1]
    expected = torch.einsum("rnc,nk,ck->nrk", S, X, table)
    assert error(torch.cat([J for (J,) in found]), expected) <= 1e-13
