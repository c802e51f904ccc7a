"""A layer that is known has KFAC, exact diagonals, rows and factors at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from curvop import (
    EFDiagonalLinearOperator,
    EFLinearOperator,
    GGNDiagonalLinearOperator,
    GGNLinearOperator,
    HessianDiagonalLinearOperator,
    HessianLinearOperator,
)
from curvop.kronecker import EKFACLinearOperator, KFACLinearOperator
from tests.cases import truth
from tests.cases.linearized import linearized_as
from tests.cases.problem import normal, seeded
from tests.comparing import TOLERANCE, error
from tests.layers.kinds import BILINEAR, NEW, RECURRENT, TRANSPOSED, linear_loop, transposed

F64 = torch.float64
MATRICES: dict[str, Any] = {
    "ggn": (GGNLinearOperator, GGNDiagonalLinearOperator),
    "ef-output": (EFLinearOperator, EFDiagonalLinearOperator),
    "hessian": (HessianLinearOperator, HessianDiagonalLinearOperator),
}
every_layer = pytest.mark.parametrize("name", NEW)
every_matrix = pytest.mark.parametrize("matrix", MATRICES)
kronecker = pytest.mark.parametrize("kind", [KFACLinearOperator, EKFACLinearOperator])
approx = pytest.mark.parametrize("approx", ["expand", "reduce"])


@every_layer
@every_matrix
def test_products_and_diagonals(name: str, matrix: str) -> None:
    p = NEW[name].problem()
    dense = truth.dense(p, matrix)
    product, diagonal = MATRICES[matrix]
    args = (p.model, p.loss, p.params, p.data)
    assert error(product(*args).to_dense(), dense) <= TOLERANCE
    D = diagonal(*args)
    assert error(D.diagonal(), dense.diagonal()) <= TOLERANCE
    assert D.form == "layers"


@every_layer
@pytest.mark.parametrize("matrix", ["ggn", "ef-output"])
def test_rows_and_factors(name: str, matrix: str) -> None:
    p = NEW[name].problem()
    dense = truth.dense(p, matrix)
    A = MATRICES[matrix][0](p.model, p.loss, p.params, p.data)
    assert error(A.factor().to_dense(), dense) <= TOLERANCE
    forms = ["factored"] if name in RECURRENT else ["rows", "factored"]
    for form in forms:
        L = linearized_as(A, form)
        V = normal(F64, A.shape[1], 3)
        assert error(L @ V, dense @ V) <= TOLERANCE
        assert error(L @ V[:, 0], dense @ V[:, 0]) <= TOLERANCE


def eigenvalues_fit(E: Any, problem: Any) -> None:
    """EKFAC's are those of the exact blocks in its basis, whatever that is."""
    eigen = E.eigh()
    V = eigen.vectors.to_dense()
    G = truth.dense(problem, "ggn")
    assert error(eigen.values, (V.T @ G @ V).diagonal()) <= TOLERANCE


@approx
@pytest.mark.parametrize("name", [n for n in TRANSPOSED if n != "3d"])
@pytest.mark.parametrize("fisher", ["type-2", "empirical", "forward-only"])
def test_kfac_of_a_transposed_convolution(name: str, approx: Any, fisher: Any) -> None:
    """Each group is a linear layer ``u = Wᵀ z`` at the positions of the input."""
    p, options = TRANSPOSED[name].problem(), {"kfac_approx": approx, "fisher_type": fisher}
    layer, head = p.model.layer, p.model.head
    args = (p.model, p.loss, p.params, p.data)
    K = KFACLinearOperator(*args, unsupported="error", **options).to_dense()
    groups = [W.flatten(1).T.detach() for W in layer.weight.chunk(layer.groups, 0)]
    C, (m, d) = len(layer.weight), groups[0].shape
    block = K[: C * m, : C * m].reshape(C, m, C, m)
    for g, W in enumerate(groups):

        def by_hand(q: Any, X: Tensor, g: int = g) -> Tensor:
            weights = [*groups[:g], q["W"], *groups[g + 1 :]]
            return head(transposed(layer, X, weights).flatten(1).tanh())

        q = {"W": W.clone().requires_grad_()}
        right = KFACLinearOperator(by_hand, p.loss, q, p.data, **options).to_dense()
        mine = slice(g * d, (g + 1) * d)
        expected = right.reshape(m, d, m, d).permute(1, 0, 3, 2)
        assert error(block[mine, :, mine], expected) <= TOLERANCE
        block[mine, :, mine] = 0
    assert not block.any()


@kronecker
@pytest.mark.parametrize("name", TRANSPOSED)
def test_one_position_of_a_transposed_convolution(name: str, kind: Any) -> None:
    """One datum with one position: the block is exact, of the bias with one output."""
    d = int(name[0])
    layers = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    model = seeded(
        lambda: nn.Sequential(layers[d - 1](2, 3, 2), nn.Tanh(), nn.Flatten()), F64
    )
    X, y = normal(F64, 1, 2, *(1,) * d), normal(F64, 1, 3 * 2**d, seed=2)
    params = [model[0].weight]
    K = kind(model, nn.MSELoss(), params, [(X, y)], unsupported="error")
    G = GGNLinearOperator(model, nn.MSELoss(), params, [(X, y)]).to_dense()
    assert error(K.to_dense(), G) <= TOLERANCE


@approx
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("name", BILINEAR)
def test_kfac_of_a_bilinear_layer(name: str, approx: Any, joint: bool) -> None:
    p, split = BILINEAR[name].problem(), BILINEAR[name].split

    class ByHand(nn.Module):
        """A linear layer of the products of two inputs."""

        def __init__(self) -> None:
            super().__init__()
            of = p.model.layer
            self.weight = nn.Parameter(of.weight.detach().flatten(1))
            self.bias, self.head = of.bias, p.model.head

        def forward(self, X: Tensor) -> Tensor:
            x, y = X.split([split, X.shape[-1] - split], -1)
            z = (x[..., :, None] * y[..., None, :]).flatten(-2)
            return self.head(F.linear(z, self.weight, self.bias).flatten(1).tanh())

    K, right = (
        KFACLinearOperator(
            m,
            p.loss,
            list(m.parameters()),
            p.data,
            kfac_approx=approx,
            separate_weight_and_bias=not joint,
            unsupported="error",
        )
        for m in (p.model, ByHand())
    )
    assert error(K.to_dense(), right.to_dense()) <= TOLERANCE


def _lstm(x: Tensor, h: Tensor, _: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    i, f, g, o = (x + h).chunk(4, 1)
    c = f.sigmoid() * c + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(x: Tensor, h: Tensor, last: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
    H = last.shape[1]
    r, z = (x + h)[:, : 2 * H].sigmoid().chunk(2, 1)
    n = (x[:, 2 * H :] + r * h[:, 2 * H :]).tanh()
    return (1 - z) * n + z * last, last


def _rnn(x: Tensor, h: Tensor, _: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    return (x + h).tanh(), other


@approx
@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("name", ["lstm", "gru", "rnn"])
def test_kfac_of_a_recurrent_layer(name: str, approx: Any, joint: bool) -> None:
    """The same as of the loop of linear layers that a user would write."""
    p, gates = RECURRENT[name].problem(), {"lstm": _lstm, "gru": _gru, "rnn": _rnn}[name]

    class Loop(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = p.model.layer, p.model.head

        def forward(self, X: Tensor) -> Tensor:
            return self.head(linear_loop(self.layer, X, gates)[0].flatten(1).tanh())

    K, right = (
        KFACLinearOperator(
            m,
            p.loss,
            list(m.parameters()),
            p.data,
            kfac_approx=approx,
            separate_weight_and_bias=not joint,
            unsupported="error",
        )
        for m in (p.model, Loop())
    )
    assert error(K.to_dense(), right.to_dense()) <= TOLERANCE


@pytest.mark.parametrize("joint", [True, False])
@every_layer
def test_ekfac_has_the_best_eigenvalues(name: str, joint: bool) -> None:
    p = NEW[name].problem()
    E = EKFACLinearOperator(
        p.model,
        p.loss,
        p.params,
        p.data,
        separate_weight_and_bias=not joint,
        unsupported="error",
    )
    eigenvalues_fit(E, p)


@kronecker
def test_one_step_of_a_recurrent_layer_is_exact(kind: Any) -> None:
    """One datum, one step, without a state: input projections as any linear layer."""
    model = seeded(lambda: nn.RNNCell(2, 3), F64)
    X, y = normal(F64, 1, 2), normal(F64, 1, 3, seed=2)
    params = [model.weight_ih, model.bias_ih]
    K = kind(model, nn.MSELoss(), params, [(X, y)], separate_weight_and_bias=False)
    G = GGNLinearOperator(model, nn.MSELoss(), params, [(X, y)]).to_dense()
    assert error(K.to_dense(), G) <= TOLERANCE


def test_functions_called_by_keyword() -> None:
    """As with any layer, calls of functions count, not classes of modules."""
    W = normal(F64, 2, 3, 2).requires_grad_()
    X, y = normal(F64, 3, 2, 2), normal(F64, 3, 9, seed=2)

    def model(p: Any, X: Tensor) -> Tensor:
        out: Tensor = F.conv_transpose1d(input=X, weight=p["W"]).flatten(1)
        return out.tanh()

    D = GGNDiagonalLinearOperator(model, nn.MSELoss(), {"W": W}, [(X, y)])
    G = GGNLinearOperator(model, nn.MSELoss(), {"W": W}, [(X, y)])
    assert D.form == "layers"
    assert error(D.diagonal(), G.to_dense().diagonal()) <= TOLERANCE
