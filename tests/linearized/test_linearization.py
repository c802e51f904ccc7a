"""Linearised once: which form is kept, what it takes, when it refuses."""

from __future__ import annotations

import itertools
import shutil
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from curvop import (
    EFLinearOperator,
    GGNLinearOperator,
    HessianLinearOperator,
    JacobianLinearOperator,
)
from curvop.linearized import replay, summed
from tests.cases.linearized import linearized_as
from tests.curvature import dense

of_risk = pytest.mark.parametrize(
    "cls", [HessianLinearOperator, GGNLinearOperator, EFLinearOperator]
)


def network(*widths: int, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(widths):
        layers += [nn.Linear(n, m), nn.Tanh()]
    return nn.Sequential(*layers[:-1]).double()


def data(net: nn.Module, n: int, width: int, size: int, classes: int) -> list[Any]:
    X = dense.normal(n, width, seed=1)
    y = torch.arange(n) % classes
    return list(zip(X.split(size), y.split(size), strict=True))


def build(cls: Any, net: nn.Module, batches: list[Any], **options: Any) -> Any:
    return cls(net, nn.CrossEntropyLoss(), list(net.parameters()), batches, **options)


def small(cls: Any, **options: Any) -> Any:
    net = network(4, 5, 3)
    return build(cls, net, data(net, 12, 4, 4, 3), **options)


def same(A: Any, B: Any, K: int = 3) -> None:
    """Multiply the same columns, to rounding."""
    V = dense.normal(A.shape[1], K, seed=7)
    torch.testing.assert_close(A @ V, B @ V, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(A @ V[:, 0], B @ V[:, 0], rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------ which form


def test_few_rows_of_a_convolution_are_kept() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
    )
    net.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)]).double()
    X, y = dense.normal(4, 1, 16, 16, seed=1), torch.arange(4) % 2
    for cls in (GGNLinearOperator, EFLinearOperator):
        A = build(cls, net, [(X, y)])
        L = A.linearize()
        assert L.form == "rows"
        # one row per class or term, and the small matrix in the middle
        R = 2 if cls is GGNLinearOperator else 1
        assert L.nbytes() == 8 * 4 * (R * A.shape[1] + R * R)
        same(A, L)


def test_wide_layers_are_factored() -> None:
    net = network(256, 256, 256, 3)
    for cls in (GGNLinearOperator, EFLinearOperator):
        A = build(cls, net, data(net, 12, 256, 4, 3))
        L = A.linearize()
        assert L.form == "factored"
        same(A, L, K=9)


def test_narrow_layers_with_many_classes_are_recorded() -> None:
    net = network(6, 6, 6, 5)
    A = build(GGNLinearOperator, net, data(net, 12, 6, 4, 5))
    assert A.linearize().form == "recorded"


def test_the_hessian_is_recorded() -> None:
    assert small(HessianLinearOperator).linearize().form == "recorded"


@of_risk
def test_for_few_products_graphs_are_kept(cls: Any) -> None:
    A = small(cls)
    L = A.linearize(num_products=2)
    assert L.form == "graphs"
    same(A, L)


@of_risk
def test_of_a_closure_graphs_are_kept(cls: Any) -> None:
    w = dense.normal(4, 3, seed=3).requires_grad_()
    X, y = dense.normal(6, 4, seed=1), torch.arange(6) % 3
    A = cls(lambda X: torch.tanh(X @ w), nn.CrossEntropyLoss(), [w], [(X, y)])
    L = A.linearize()
    assert L.form == "graphs"
    same(A, L)


def test_data_that_depend_on_each_other_are_neither_rows_nor_factors() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(64, 64), nn.BatchNorm1d(64, affine=False), nn.Linear(64, 2)
    )
    X, y = dense.normal(8, 64, seed=1), torch.arange(8) % 2
    A = build(GGNLinearOperator, net.double(), [(X, y)])
    with (
        mock.patch.dict(
            summed.FORMS, recorded=mock.Mock(side_effect=RuntimeError("no way"))
        ),
        pytest.warns(UserWarning, match="cannot be recorded"),
    ):
        L = A.linearize()
    assert L.form == "graphs"
    same(A, L)


def test_a_layer_whose_output_is_overwritten() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(inplace=True), nn.Linear(64, 3)).double()
    batches = data(net, 8, 64, 8, 3)
    for cls in (GGNLinearOperator, EFLinearOperator):
        A = build(cls, net, batches)
        same(A, linearized_as(A, "factored"))
    H = build(HessianLinearOperator, net, batches)
    same(H, build(HessianLinearOperator, net, batches, differentiation="backpack"))


# ------------------------------------------------------------------ memory


@of_risk
def test_the_budget_is_kept(cls: Any) -> None:
    A = small(cls)
    whole = A.linearize().nbytes()
    for budget in (0, whole // 2, whole):
        L = A.linearize(memory_budget=budget)
        assert L.nbytes() <= budget
        same(A, L)
        L = A.linearize(memory_budget=budget, num_products=1)
        assert L.nbytes() <= budget
        same(A, L)


@pytest.mark.parametrize("cls", [GGNLinearOperator, EFLinearOperator])
def test_factors_beyond_the_budget_are_not_kept(cls: Any) -> None:
    net = network(256, 256, 256, 3)
    A = build(cls, net, data(net, 12, 256, 4, 3))
    needed = A.linearize().nbytes()
    L = A.linearize(memory_budget=needed - 1)
    assert L.form == "recorded"
    assert L.nbytes() < needed
    same(A, L)


# ------------------------------------------------------------------ values


@of_risk
def test_it_refuses_after_a_step(cls: Any) -> None:
    net = network(4, 5, 3)
    A = build(cls, net, data(net, 12, 4, 4, 3))
    L = A.linearize()
    v = dense.normal(A.shape[1], seed=2)
    L @ v
    with torch.no_grad():
        next(net.parameters()).mul_(1.1)
    with pytest.raises(ValueError, match=r"changed since.*linearize\(\) again"):
        L @ v
    same(A, A.linearize())


@of_risk
@pytest.mark.parametrize("size", [1, 5, 100])
def test_batches_put_together(cls: Any, size: int) -> None:
    net = network(4, 5, 3)
    A = build(cls, net, data(net, 13, 4, 3, 3))
    same(A, A.linearize(batch_size=size))


def test_it_tells_what_it_took() -> None:
    L = small(HessianLinearOperator).linearize()
    assert 0 < L.setup_seconds < 60
    assert L.compile_seconds == 0
    assert L.nbytes() > 0


# ------------------------------------------------------------------ columns


@pytest.mark.parametrize("K", [1, 2, 7, 8, 9, 16, 17])
def test_any_number_of_columns(K: int) -> None:
    A = small(HessianLinearOperator)
    same(A, A.linearize(), K=K)


@pytest.mark.parametrize(("together", "calls"), [(1.0, 0), (2.3, 0), (2.5, 8)])
def test_together_unless_that_is_slower(together: float, calls: int) -> None:
    """Two seconds one by one, so much together."""
    net = network(4, 5, 3)
    A = build(HessianLinearOperator, net, data(net, 12, 4, 12, 3))
    L = A.linearize()
    V = dense.normal(A.shape[1], 8, seed=7)
    seconds = mock.Mock(side_effect=[together, 2.0])
    with mock.patch.object(replay, "_seconds", seconds):
        L @ V
    with mock.patch.object(replay.Replay, "_one", autospec=True, side_effect=one) as spy:
        torch.testing.assert_close(L @ V, A @ V, rtol=1e-10, atol=1e-12)
    assert spy.call_count == calls


one = replay.Replay._one


# ------------------------------------------------------------------ compiled


@of_risk
def test_compiled_without_a_break(cls: Any) -> None:
    """``fullgraph=True``: a break in the graph would be an error."""
    A = small(cls)
    L = A.linearize(compile="eager")
    assert L.form == "recorded"
    assert 0 <= L.compile_seconds <= L.setup_seconds
    same(A, L, K=8)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch, within torch
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_compiled_by_inductor() -> None:
    A = small(HessianLinearOperator)
    L = A.linearize(compile=True)
    assert 0 < L.compile_seconds <= L.setup_seconds
    v = dense.normal(A.shape[1], seed=7)
    torch.testing.assert_close(A @ v, L @ v, rtol=1e-10, atol=1e-12)


def test_a_compiler_that_does_not_exist() -> None:
    with pytest.raises(Exception, match="no-such-compiler"):
        small(HessianLinearOperator).linearize(compile="no-such-compiler")


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"memory_budget": 1e6}, TypeError, "memory_budget as an integer, got float"),
        ({"memory_budget": -1}, ValueError, "memory_budget of at least 0, got -1"),
        ({"num_products": 0}, ValueError, "num_products of at least 1, got 0"),
        ({"num_products": None}, TypeError, "num_products as an integer, got NoneType"),
        ({"batch_size": True}, TypeError, "batch_size as an integer, got bool"),
        ({"batch_size": 0}, ValueError, "batch_size of at least 1, got 0"),
        ({"compile": 1}, TypeError, "compile as True, False or the name"),
    ],
)
def test_bad_input(options: Any, error: type, message: str) -> None:
    H = small(HessianLinearOperator, check_deterministic=False)
    net = network(4, 3)
    J = JacobianLinearOperator(
        net, list(net.parameters()), [(torch.ones(2, 4).double(), None)]
    )
    for A in (H, J):
        with pytest.raises(error, match=message):
            A.linearize(**options)


# ------------------------------------------------------------------ when recording fails


def test_what_cannot_be_recorded_keeps_graphs_with_a_warning() -> None:
    A = small(HessianLinearOperator)
    with (
        mock.patch.dict(
            summed.FORMS, recorded=mock.Mock(side_effect=RuntimeError("no way"))
        ),
        pytest.warns(UserWarning, match=r"cannot be recorded \(no way\)"),
    ):
        L = A.linearize()
    assert L.form == "graphs"
    same(A, L)


def test_a_wrong_product_is_not_kept() -> None:
    """Whatever was derived wrongly, the first product shows it."""
    A = small(HessianLinearOperator)
    right = summed.FORMS["recorded"]

    def wrong(*args: Any) -> Any:
        kept = right(*args)
        pieces = [lambda V, p=p: [1.001 * b for b in p(V)] for p in kept.batches]
        return summed.Kept(pieces, kept.nbytes)

    with (
        mock.patch.dict(summed.FORMS, recorded=wrong),
        pytest.warns(UserWarning, match="off by 1.0e-03"),
    ):
        L = A.linearize()
    assert L.form == "graphs"
    same(A, L)


# ------------------------------------------------------------------ convolutions


def refusing(*args: Any) -> Any:
    raise RuntimeError("no way")


def _conv(d: int, **options: Any) -> nn.Module:
    kinds = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
    torch.manual_seed(0)
    first, second = kinds[d](2, 2, 1), kinds[d](2, 4, 3, **options)
    return nn.Sequential(first, nn.Softplus(), second, nn.Softplus()).double()


CONVOLUTIONS = {
    "plain": (2, {}),
    "strided": (2, {"stride": 2, "padding": 1}),
    "dilated": (2, {"dilation": 2, "padding": 2}),
    "strided_dilated": (2, {"stride": (2, 1), "dilation": (1, 2), "padding": (1, 2)}),
    "grouped": (2, {"groups": 2, "padding": 1}),
    "same": (2, {"padding": "same"}),
    "circular": (2, {"padding": 1, "padding_mode": "circular"}),
    "reflect": (2, {"padding": 1, "padding_mode": "reflect"}),
    "no_bias": (2, {"bias": False}),
    "one_dimension": (1, {"stride": 2, "padding": 1}),
    "three_dimensions": (3, {"stride": 2, "padding": 1}),
}


@of_risk
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(cls: Any, name: str) -> None:
    """Against plain double backward: recorded, factored, and the single column."""
    d, options = CONVOLUTIONS[name]
    net = _conv(d, **options)
    X = dense.normal(3, 2, *(7,) * d, seed=1)

    y = dense.normal(3, seed=2)
    params = list(net.parameters())
    model = nn.Sequential(net, nn.Flatten(), Mean())
    A = cls(model, nn.MSELoss(), params, [(X, y)])
    if cls is HessianLinearOperator:
        truth = dense.hessian(model, nn.MSELoss(), params, X, y)
    else:
        J = dense.rows(model(X), params).detach()
        r = (model(X) - y).detach()
        truth = 2 / 3 * J.T @ J if cls is GGNLinearOperator else 4 / 3 * (J.T * r**2) @ J
    forms = [A, A.linearize()]
    if cls is not HessianLinearOperator:
        forms += [linearized_as(A, "rows")]
        if name != "same":  # padding by name is left to the other forms
            forms += [linearized_as(A, "factored")]
    for form in forms:
        V = dense.normal(A.shape[1], 2, seed=4)
        torch.testing.assert_close(form @ V, truth @ V, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(form @ V[:, 0], truth @ V[:, 0], rtol=1e-9, atol=1e-11)


class Mean(nn.Module):
    """The mean of each datum."""

    def forward(self, X: Tensor) -> Tensor:
        return X.mean(1)


def test_half_precision() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).bfloat16()
    X, y = torch.randn(6, 3).bfloat16(), torch.tensor([0, 1, 1, 0, 1, 0])
    for matrix in (HessianLinearOperator, GGNLinearOperator):
        A = matrix(model, nn.CrossEntropyLoss(), list(model.parameters()), [(X, y)])
        v = torch.ones(A.shape[0], dtype=torch.bfloat16)
        exact = (A @ v).float()
        assert ((A.linearize() @ v).float() - exact).norm() <= 0.05 * exact.norm()


def test_a_divisor_of_the_users_own_is_recorded() -> None:
    """Unless it vanishes in a batch: that product is not a number."""
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)).double()
    X = torch.randn(6, 3).double()
    params = list(model.parameters())

    def loss(prediction: Tensor, y: Tensor) -> Tensor:
        return (y * prediction.square().sum(1)).sum() / y.sum()

    def divisor(prediction: Any, y: Tensor) -> Tensor:
        return y.sum()

    y = torch.tensor([1.0, 0.0, 2.0, 0.0, 1.0, 0.5]).double()
    data = [(X[:3], y[:3]), (X[3:], y[3:])]
    H = HessianLinearOperator(model, loss, params, data, reduction=divisor)
    L = H.linearize(batch_size=3)
    assert L.form == "recorded"
    v = torch.randn(H.shape[0]).double()
    torch.testing.assert_close(L @ v, H @ v)

    y[3:] = 0
    with pytest.warns(UserWarning, match="graphs instead"):
        L = H.linearize(batch_size=3)
    torch.testing.assert_close(L @ v, H @ v)
