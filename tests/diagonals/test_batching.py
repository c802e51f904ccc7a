"""However the data is cut, the diagonal is that of all of it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from curvop import (
    EFDiagonalLinearOperator,
    GGNDiagonalLinearOperator,
    GGNLinearOperator,
    HessianDiagonalLinearOperator,
)
from tests.cases.problem import classes, cross_entropy, normal, seeded
from tests.cases.truth import gradient, rows
from tests.comparing import TOLERANCE, error
from tests.curvature import dense

N = 6
DIAGONALS: Any = (
    GGNDiagonalLinearOperator,
    EFDiagonalLinearOperator,
    HessianDiagonalLinearOperator,
)


class _Tokens(nn.Module):
    """Token ids of any length; positions are mixed, an embedding and a scale have some."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3, padding_idx=0)
        self.place = nn.Parameter(torch.zeros(4, 3))
        self.hidden = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 3)

    def forward(self, X: Any) -> Tensor:
        ids = X["ids"]
        h = self.embed(ids) + self.place[: ids.shape[1]]
        h = self.norm(self.hidden(h.cumsum(1)).tanh())
        return self.head(h)  # [N, T, C]


class _Rows(_Tokens):
    """Predicts ``[N·T, C]``, as language models in the wild do."""

    def forward(self, X: Any) -> Tensor:
        return super().forward(X).flatten(0, 1)


LENGTHS = (3, 1, 4)  # of the batches, which have 2, 1 and 3 data
COUNTS = (2, 1, 3)


def _language(build: type[nn.Module]) -> tuple[nn.Module, list[tuple[Any, Tensor]]]:
    model = seeded(build, torch.float64)
    data = []
    for n, T in zip(COUNTS, LENGTHS, strict=True):
        y = classes(3, n, T)
        y[0, 0] = -100
        data.append(({"ids": classes(5, n, T)}, y))
    return model, data


def _truth(
    model: nn.Module, data: list[Any], matrix: str, params: list[Tensor], weight: Tensor
) -> Tensor:
    """Datum by datum and target by target, by plain double backward."""
    Z = sum(float(weight[t]) for _, y in data for t in y.flatten() if t >= 0)
    total = torch.zeros(sum(p.numel() for p in params), dtype=torch.float64)
    for X, y in data:
        out = model(X).reshape(-1, 3)
        for f, t in zip(out, y.flatten(), strict=True):
            if t < 0:
                continue
            loss = weight[t] * F.cross_entropy(f[None], t[None])
            if matrix == "ef":
                g = gradient(loss, params, keep=False)
                total += g**2
            elif matrix == "hessian":
                total += rows(gradient(loss, params), params).diagonal()
            else:
                J = rows(f, params)
                p = f.detach().softmax(0)
                B = weight[t] * (p.diag() - p[:, None] * p)
                total += (J * (B @ J)).sum(0)
    return total / Z


@pytest.mark.parametrize("cls", DIAGONALS)
@pytest.mark.parametrize("build", [_Tokens, _Rows])
def test_sequences_of_unequal_length(cls: Any, build: Any) -> None:
    model, data = _language(build)
    params = list(model.parameters())
    weight = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    given: list[Any] = data
    if build is _Rows:
        given = [(X, y.flatten()) for X, y in data]
    D = cls(
        _ClassesSecond(model) if build is _Tokens else model,
        nn.CrossEntropyLoss(weight=weight),
        params,
        given,
        batch_size_fn=lambda X: len(X["ids"]),
    )
    matrix = ("ggn", "ef", "hessian")[DIAGONALS.index(cls)]
    assert error(D.diagonal(), _truth(model, data, matrix, params, weight)) <= TOLERANCE


class _ClassesSecond(nn.Module):
    """``[N, C, T]``, as cross-entropy wants it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, X: Any) -> Tensor:
        return self.inner(X).transpose(1, 2)


def _network() -> nn.Module:
    return seeded(
        lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)), torch.float64
    )


@settings(max_examples=15, deadline=None)
@given(
    order=st.permutations(range(N)),
    cuts=st.lists(st.integers(1, N - 1), unique=True, max_size=3),
    cls=st.sampled_from(DIAGONALS),
)
def test_any_partition(order: list[int], cuts: list[int], cls: Any) -> None:
    model, loss = _network(), cross_entropy(torch.float64)
    X, y = normal(torch.float64, N, 3), classes(3, N, ignore=True)
    ends = [0, *sorted(cuts), N]
    parts = [order[a:b] for a, b in itertools.pairwise(ends)]
    params = list(model.parameters())
    whole, cut = (
        cls(model, loss, params, data, check_deterministic=False).diagonal()
        for data in ([(X, y)], dense.batches(X, y, parts))
    )
    assert error(cut, whole) <= TOLERANCE


@pytest.mark.parametrize("chunk_size", [1, 2, None])
@pytest.mark.parametrize("cls", DIAGONALS)
def test_chunks_of_columns(cls: Any, chunk_size: int | None) -> None:
    model, data = _language(_Rows)
    data = [(X, y.flatten()) for X, y in data]
    options = {"batch_size_fn": lambda X: len(X["ids"]), "check_deterministic": False}
    loss, params = nn.CrossEntropyLoss(), list(model.parameters())
    D = cls(model, loss, params, data, **options)
    E = cls(model, loss, params, data, chunk_size=chunk_size, **options)
    assert error(E.diagonal(), D.diagonal()) <= TOLERANCE


@pytest.mark.parametrize("samples", [1, 3])
def test_sampled_fisher_is_that_of_the_operator(samples: int) -> None:
    model, loss = _network(), cross_entropy(torch.float64)
    X, y = normal(torch.float64, N, 3), classes(3, N)
    data = dense.batches(X, y, ([0], [4, 2, 5], [1, 3]))
    args: Any = (model, loss, list(model.parameters()), data)
    D = GGNDiagonalLinearOperator(*args, mc_samples=samples, seed=7)
    G = GGNLinearOperator(*args, mc_samples=samples, seed=7)
    assert error(D.diagonal(), G.to_dense().diagonal()) <= TOLERANCE
    assert D.form == "layers"
    other = GGNDiagonalLinearOperator(*args, mc_samples=samples, seed=8)
    assert error(other.diagonal(), D.diagonal()) > 1e-3
