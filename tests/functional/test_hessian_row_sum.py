"""Row sums of Hessians."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from curvop.functional import hessian_row_sum
from tests.functional.problems import classifier, dense_hessian, flat, relative_error


def polynomial(x, y):
    return x**2 + 2 * x**2 * y - 3 * y**3


@pytest.mark.parametrize("form", [list, tuple])
def test_in_the_structure_of_the_parameters(form):
    x, y = (torch.tensor(t, requires_grad=True) for t in (1.0, 2.0))
    for f in (lambda: polynomial(x, y), polynomial(x, y)):
        sums = hessian_row_sum(f, form((x, y)), blocks=True)
        assert type(sums) is form
        assert [float(s) for s in sums] == [14, -32]
        assert not any(s.requires_grad for s in sums)
        assert hessian_row_sum(f, form((x, y))).tolist() == [14, -32]


def test_of_named_parameters_and_one_tensor():
    x, y = (torch.tensor(t, requires_grad=True) for t in (1.0, 2.0))
    for f in (lambda: polynomial(x, y), polynomial(x, y)):
        named = hessian_row_sum(f, {"x": x, "y": y}, blocks=True)
        assert {k: float(s) for k, s in named.items()} == {"x": 14, "y": -32}
        assert hessian_row_sum(f, {"y": y, "x": x}).tolist() == [-32, 14]
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    assert hessian_row_sum(lambda: polynomial(*w), w).tolist() == [14, -32]


@pytest.mark.parametrize("requires_grad", [True, False])
def test_of_a_function_of_the_parameters(requires_grad):
    w = torch.tensor([1.0, 2.0], requires_grad=requires_grad)
    assert hessian_row_sum(lambda w: polynomial(*w), w).tolist() == [14, -32]
    assert w.requires_grad == requires_grad
    x, y = w.detach()
    named = hessian_row_sum(
        lambda p: polynomial(p["x"], p["y"]), {"x": x, "y": y}, blocks=True
    )
    assert {k: float(s) for k, s in named.items()} == {"x": 14, "y": -32}


def test_of_a_network_with_an_iterator_of_parameters():
    model, X, y = classifier()

    def func():
        return nn.functional.cross_entropy(model(X), y)

    H = dense_hessian(func, list(model.parameters()))
    assert relative_error(hessian_row_sum(func, model.parameters()), H.sum(1)) < 1e-12
    blocks = hessian_row_sum(func, model.parameters(), blocks=True)
    assert [b.shape for b in blocks] == [p.shape for p in model.parameters()]
    assert relative_error(flat(blocks), H.sum(1)) < 1e-12


def test_the_graph_of_a_scalar_serves_again():
    model, X, y = classifier()
    params = list(model.parameters())
    expected = dense_hessian(lambda: nn.functional.cross_entropy(model(X), y), params)
    loss = nn.functional.cross_entropy(model(X), y)
    for _ in range(2):
        with torch.no_grad():
            sums = hessian_row_sum(loss, model.parameters())
        assert relative_error(sums, expected.sum(1)) < 1e-12
    gradient = torch.autograd.grad(nn.functional.cross_entropy(model(X), y), params)
    loss.backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(params, gradient, strict=True))


def test_parameters_that_a_scalar_does_not_use_have_zero_rows():
    x, y, z = (torch.tensor(t, requires_grad=True) for t in (1.0, 2.0, 3.0))
    assert hessian_row_sum(polynomial(x, y), [x, z, y]).tolist() == [14, 0, -32]
    assert hessian_row_sum(2 * x + y, [x, y]).tolist() == [0, 0]  # linear


def test_a_scalar_through_the_kernel_of_weight_norm_is_refused():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    loss = layer(torch.ones(1, 3)).square().sum()
    with pytest.raises(ValueError, match="weight norm, whose second derivative is wrong"):
        hessian_row_sum(loss, layer.parameters())


@pytest.mark.parametrize(
    ("f", "error", "message"),
    [
        (3.0, TypeError, "scalar tensor, or a function.*float"),
        (None, TypeError, "NoneType"),
        (torch.ones(2, requires_grad=True) * 2, ValueError, r"scalar.*\(2,\)"),
        (torch.ones(()), ValueError, "without a graph"),
        (torch.ones((), requires_grad=True) * float("nan"), ValueError, "finite.*nan"),
    ],
)
def test_refuses(f, error, message):
    w = torch.ones(2, requires_grad=True)
    with pytest.raises(error, match=message):
        hessian_row_sum(f, w)
