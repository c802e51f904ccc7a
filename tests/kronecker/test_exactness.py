"""Where theory says that KFAC is exact, it equals the dense GGN block."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from curvop import GGNLinearOperator
from curvop.kronecker import EKFACLinearOperator, KFACLinearOperator
from tests.cases.problem import Problem, seeded
from tests.cases.truth import block_diagonal, ggn
from tests.comparing import error, random
from tests.kronecker.test_definition import LOSS

TOLERANCE = 1e-10
OPERATORS = [KFACLinearOperator, EKFACLinearOperator]
both = pytest.mark.parametrize("kind", OPERATORS, ids=["kfac", "ekfac"])
joint = pytest.mark.parametrize("joint", [False, True], ids=["separate", "joint"])


def blocks(model: nn.Module, joint: bool) -> list[int]:
    """Number of entries of each block: weight and bias of a layer follow each other."""
    sizes: list[int] = []
    for module in model.modules():
        own = [p.numel() for p in module._parameters.values() if p is not None]
        sizes += [sum(own)] if joint and own else own
    return sizes


def truth(model: nn.Module, loss: Any, X: Tensor, y: Any, joint: bool) -> Tensor:
    G = ggn(Problem(model, list(model.parameters()), loss, X, y))
    return block_diagonal(G, blocks(model, joint))


@both
@joint
@pytest.mark.parametrize(
    ("loss", "y"),
    [
        (LOSS, torch.tensor([2])),
        (nn.MSELoss(), random(1, 3, seed=5)),
        (
            nn.BCEWithLogitsLoss(pos_weight=torch.tensor([0.5, 2.0, 1.0]).double()),
            torch.ones(1, 3).double(),
        ),
        (nn.PoissonNLLLoss(), torch.ones(1, 3).double()),
    ],
    ids=["cross-entropy", "mse", "bce", "poisson"],
)
def test_one_datum(kind: Any, joint: bool, loss: Any, y: Tensor) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3))

    model, X = seeded(build, torch.float64), random(1, 2)
    K = kind(
        model,
        loss,
        list(model.parameters()),
        [(X, y)],
        separate_weight_and_bias=not joint,
    )
    assert error(K.to_dense(), truth(model, loss, X, y, joint)) <= TOLERANCE


@both
@joint
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_deep_linear_network_with_mse(kind: Any, joint: bool, reduction: str) -> None:
    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 3), nn.Linear(3, 2))

    model, X, y = seeded(build, torch.float64), random(7, 2), random(7, 2, seed=3)
    loss = nn.MSELoss(reduction=reduction)
    data = [(X[:1], y[:1]), (X[1:4], y[1:4]), (X[4:], y[4:])]
    K = kind(
        model, loss, list(model.parameters()), data, separate_weight_and_bias=not joint
    )
    assert error(K.to_dense(), truth(model, loss, X, y, joint)) <= TOLERANCE


@both
def test_one_layer_with_mse(kind: Any) -> None:
    model, X, y = seeded(lambda: nn.Linear(3, 2), torch.float64), random(5, 3), random(5, 2)
    data = [(X[:2], y[:2]), (X[2:], y[2:])]
    K = kind(model, nn.MSELoss(), model.parameters(), data, separate_weight_and_bias=False)
    assert error(K.to_dense(), truth(model, nn.MSELoss(), X, y, True)) <= TOLERANCE


class Deep(nn.Module):
    """A deep linear network at each position; perhaps the mean over positions inside."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 2)
        self.pooled = pooled

    def forward(self, X: Tensor) -> Tensor:
        h = self.first(X)
        return self.last(h.mean(1) if self.pooled else h)


@both
@joint
@pytest.mark.parametrize("approx", ["expand", "reduce"])
def test_sequences_of_unequal_length(kind: Any, joint: bool, approx: str) -> None:
    """Expand is exact with a loss at each position, reduce with one for their mean."""
    pooled = approx == "reduce"
    model = seeded(lambda: Deep(pooled), torch.float64)
    Xs = [random(n, T, 2, seed=T) for n, T in ((2, 3), (1, 5), (3, 1), (2, 3))]
    ys = [random(len(X), *(() if pooled else X.shape[1:2]), 2, seed=9) for X in Xs]
    params = list(model.parameters())
    K = kind(
        model,
        nn.MSELoss(),
        params,
        list(zip(Xs, ys, strict=True)),
        kfac_approx=approx,
        separate_weight_and_bias=not joint,
    )
    J, num = [], 0
    for X in Xs:
        f = model(X).flatten()
        num += len(f)
        rows = [torch.autograd.grad(o, params, retain_graph=True) for o in f]
        J += [torch.cat([g.flatten() for g in r]) for r in rows]
    G = 2 * torch.stack(J).T @ torch.stack(J) / num
    right = block_diagonal(G, blocks(model, joint))
    assert error(K.to_dense(), right) <= TOLERANCE


def test_grouped_linear_convolution_of_one_position() -> None:
    """Each group of a convolution is a layer of its own: its blocks are exact."""
    model = seeded(
        lambda: nn.Sequential(nn.Conv1d(4, 4, 2, groups=2), nn.Flatten()), torch.float64
    )
    X, y = random(6, 4, 2), random(6, 4, seed=2)
    params = [model[0].weight]
    K = KFACLinearOperator(model, nn.MSELoss(), params, [(X, y)])
    G = GGNLinearOperator(model, nn.MSELoss(), params, [(X, y)]).to_dense()
    assert error(K.to_dense(), block_diagonal(G, [8, 8])) <= TOLERANCE
