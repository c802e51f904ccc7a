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
    sums = hessian_row_sum(lambda: polynomial(x, y), form((x, y)))
    assert type(sums) is form
    assert [float(s) for s in sums] == [14, -32]
    assert not any(s.requires_grad for s in sums)


def test_of_named_parameters_and_one_tensor():
    x, y = (torch.tensor(t, requires_grad=True) for t in (1.0, 2.0))
    named = hessian_row_sum(lambda: polynomial(x, y), {"x": x, "y": y})
    assert {k: float(s) for k, s in named.items()} == {"x": 14, "y": -32}
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    assert hessian_row_sum(lambda: polynomial(*w), w).tolist() == [14, -32]


@pytest.mark.parametrize("requires_grad", [True, False])
def test_of_a_function_of_the_parameters(requires_grad):
    w = torch.tensor([1.0, 2.0], requires_grad=requires_grad)
    assert hessian_row_sum(lambda w: polynomial(*w), w).tolist() == [14, -32]
    assert w.requires_grad == requires_grad
    x, y = w.detach()
    named = hessian_row_sum(lambda p: polynomial(p["x"], p["y"]), {"x": x, "y": y})
    assert {k: float(s) for k, s in named.items()} == {"x": 14, "y": -32}


def test_of_a_network_with_an_iterator_of_parameters():
    model, X, y = classifier()

    def func():
        return nn.functional.cross_entropy(model(X), y)

    H = dense_hessian(func, list(model.parameters()))
    sums = hessian_row_sum(func, model.parameters())
    assert relative_error(flat(sums), H.sum(1)) < 1e-12
