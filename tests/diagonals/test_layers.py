"""Layers with all their options, and what must not be taken for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvop import (
    EFDiagonalLinearOperator,
    GGNDiagonalLinearOperator,
    HessianDiagonalLinearOperator,
    HessianLinearOperator,
)
from curvop.diagonals import layer_sums
from curvop.diagonals.second_derivatives import piecewise_linear
from tests.cases import truth
from tests.cases.problem import Problem, classes, normal, seeded
from tests.comparing import TOLERANCE, error

DIAGONALS: Any = {
    "ggn": GGNDiagonalLinearOperator,
    "ef-output": EFDiagonalLinearOperator,
    "hessian": HessianDiagonalLinearOperator,
}
every_matrix = pytest.mark.parametrize("matrix", DIAGONALS)


def check(model: nn.Module, X: Any, y: Any, matrix: str, form: str | None = None) -> None:
    """Compare with the dense truth."""
    params = list(model.parameters())
    loss: nn.Module = nn.CrossEntropyLoss() if y.dtype == torch.long else nn.MSELoss()
    D = DIAGONALS[matrix](model, loss, params, [(X, y)])
    expected = truth.dense(Problem(model, params, loss, X, y), matrix).diagonal()
    assert error(D.diagonal(), expected) <= TOLERANCE
    if form is not None:
        assert D.form == form


CONVOLUTIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "1d": (lambda: nn.Conv1d(2, 4, 3, stride=2, padding=1, dilation=2), (2, 9)),
    "2d": (lambda: nn.Conv2d(2, 4, (3, 1), stride=(1, 2), padding=(1, 0)), (2, 4, 5)),
    "3d": (lambda: nn.Conv3d(2, 3, 2, padding=(0, 1, 0), bias=False), (2, 2, 2, 3)),
    "groups": (lambda: nn.Conv2d(4, 6, 2, groups=2, dilation=(1, 2)), (4, 3, 4)),
    "depthwise": (lambda: nn.Conv1d(3, 6, 3, groups=3, padding=1), (3, 4)),
    "same": (lambda: nn.Conv1d(2, 3, 3, padding="same"), (2, 4)),
    "valid": (lambda: nn.Conv1d(2, 3, 3, padding="valid"), (2, 4)),
    "reflect": (lambda: nn.Conv1d(2, 3, 3, padding=2, padding_mode="reflect"), (2, 4)),
    "circular": (lambda: nn.Conv2d(1, 3, 3, padding=1, padding_mode="circular"), (1, 3, 3)),
    "transposed": (lambda: nn.ConvTranspose1d(2, 3, 2), (2, 3)),
    "few positions": (lambda: nn.Conv2d(3, 3, 3), (3, 4, 3)),
}


@every_matrix
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name: str, matrix: str) -> None:
    build, shape = CONVOLUTIONS[name]
    X, y = normal(torch.float64, 3, *shape), normal(torch.float64, 3, 2, seed=2)
    check(_headed(build, shape), X, y, matrix)


def _headed(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        outputs = build()(torch.zeros(1, *shape)).numel()
    return seeded(
        lambda: nn.Sequential(build(), nn.Tanh(), nn.Flatten(), nn.Linear(outputs, 2)),
        torch.float64,
    )


@every_matrix
@pytest.mark.parametrize("pairs", [True, False])
def test_squares_are_taken_once_or_for_every_column(
    matrix: str, pairs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ways to sum over positions, of which the cheaper one is chosen."""
    monkeypatch.setattr(layer_sums, "PAIRS", 2**24 if pairs else 0)
    monkeypatch.setattr(layer_sums, "STREAM", 100 if not pairs else 0)
    model = seeded(
        lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)),
        torch.float64,
    )
    X, y = normal(torch.float64, 3, 2, 6), normal(torch.float64, 3, 2, 3, seed=2)
    check(model, X, y, matrix, "layers")


@every_matrix
@pytest.mark.parametrize("last", [nn.ReLU, nn.Tanh])
def test_piecewise_linear_networks(matrix: str, last: Any) -> None:
    """With ReLU, pooling and norms in evaluation, Hessian blocks are those of the GGN."""
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 2),
            nn.BatchNorm2d(3),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(3, 4),
            nn.LeakyReLU(),
            nn.Linear(4, 4),
            last(),
            nn.Linear(4, 3),
        ),
        torch.float64,
    ).eval()
    X, y = normal(torch.float64, 4, 1, 3, 3), classes(3, 4)
    check(model, X, y, matrix, "layers")
    params = list(model.parameters())
    H = HessianLinearOperator(model, nn.CrossEntropyLoss(), params, [(X, y)])
    found = piecewise_linear(H, X, y)
    # after the curved activation only the last layer is left
    assert found == list(range(10) if last is nn.ReLU else (8, 9))


class _TimeFirst(nn.Module):
    """The layer sees positions first: with as many data as positions shapes do not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(2, 3)
        self.head = nn.Linear(3, 2)

    def forward(self, X: Tensor) -> Tensor:
        h = self.hidden(X.transpose(0, 1)).cumsum(0).tanh()  # [T, N, 3]
        return self.head(h.transpose(0, 1)[:, -1])


@every_matrix
@pytest.mark.parametrize("N", [4, 6])
def test_positions_first_are_not_taken_for_data(N: int, matrix: str) -> None:
    model = seeded(_TimeFirst, torch.float64)
    X, y = normal(torch.float64, N, N, 2), normal(torch.float64, N, 2, seed=2)
    check(model, X, y, matrix)


class _WeightTwice(nn.Module):
    """A weight is a layer's, and used once more outside of it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(4, 3)
        self.hidden = nn.Linear(3, 3)
        self.other = nn.Linear(3, 3)

    def forward(self, X: Tensor) -> Tensor:
        h = self.hidden(self.embed(X).mean(1)).tanh() @ self.hidden.weight
        h = F.linear(h, self.other.weight, self.hidden.bias)
        return F.linear(h, self.embed.weight)  # a head tied to the embedding


@every_matrix
def test_parameters_of_several_kinds_of_use(matrix: str) -> None:
    model = seeded(_WeightTwice, torch.float64)
    params = [p for n, p in model.named_parameters() if n != "other.bias"]
    X, y, loss = classes(4, 5, 3), classes(4, 5), nn.CrossEntropyLoss()
    D = DIAGONALS[matrix](model, loss, params, [(X, y)])
    expected = truth.dense(Problem(model, params, loss, X, y), matrix).diagonal()
    assert error(D.diagonal(), expected) <= TOLERANCE


@pytest.mark.parametrize("axis", [0, 1])
def test_models_that_mix_data_fall_back(axis: int) -> None:
    """Centring over the data: predictions depend on all of them; over features: not."""

    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Linear(3, 4)
            self.head = nn.Linear(4, 2)

        def forward(self, X: Tensor) -> Tensor:
            h = self.hidden(X).sigmoid()
            return self.head(h - h.mean(axis, keepdim=True))

    model = seeded(Centred, torch.float64)
    X, y = normal(torch.float64, 7, 3), normal(torch.float64, 7, 2, seed=2)
    check(model, X, y, "ggn", "rows" if axis == 0 else "layers")
    check(model, X, y, "hessian", "columns" if axis == 0 else "layers")


def test_inputs_without_a_batch_axis() -> None:
    """One graph as a batch: nodes are data only for the loss."""

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Linear(2, 3)
            self.head = nn.Linear(3, 2)

        def forward(self, X: Any) -> Tensor:
            return self.head((X["edges"] @ self.hidden(X["nodes"])).tanh())

    model = seeded(Graph, torch.float64)
    X = {"nodes": normal(torch.float64, 4, 2), "edges": normal(torch.float64, 4, 4)}
    y = normal(torch.float64, 4, 2, seed=2)
    for matrix in DIAGONALS:
        check(model, X, y, matrix)


@every_matrix
def test_inputs_that_all_data_share(matrix: str) -> None:
    """A mask over positions has no batch axis: it is not cut."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(2, 1, batch_first=True)
            self.head = nn.Linear(2, 3)

        def forward(self, X: Any) -> Tensor:
            x, mask = X["x"], X["mask"]
            return self.head(self.attention(x, x, x, attn_mask=mask)[0].mean(1))

    model = seeded(Masked, torch.float64)
    mask = torch.ones(3, 3, dtype=torch.bool).triu(1)
    X = {"x": normal(torch.float64, 5, 3, 2), "mask": mask}
    check(model, X, classes(3, 5), matrix, "layers")
