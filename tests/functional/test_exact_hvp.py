"""Hessian-vector products by double backward."""

from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from curvop.functional import exact_hvp
from tests.functional.problems import (
    classifier,
    dense_hessian,
    flat,
    randn_like,
    relative_error,
)

MODEL, X, Y = classifier()
PARAMS = list(MODEL.parameters())


def func():
    return nn.functional.cross_entropy(MODEL(X), Y)


H = dense_hessian(func, PARAMS)


@pytest.mark.parametrize("form", [list, tuple])
def test_equals_dense_in_the_form_of_v(form):
    v = form(randn_like(PARAMS))
    Hv = exact_hvp(func, PARAMS, v)
    assert type(Hv) is form
    assert [a.shape for a in Hv] == [p.shape for p in PARAMS]
    assert relative_error(flat(Hv), H @ flat(v)) < 1e-12


def test_named_parameters_answer_in_the_order_of_v():
    named = dict(MODEL.named_parameters())
    v = dict(zip(reversed(named), randn_like(reversed(PARAMS)), strict=True))
    Hv = exact_hvp(func, named, v)
    assert list(Hv) == list(v)
    expected = H @ flat(v[name] for name in named)
    assert relative_error(flat(Hv[name] for name in named), expected) < 1e-12
    blocks = exact_hvp(func, named, [v[name] for name in named])
    assert type(blocks) is list
    assert relative_error(flat(blocks), expected) < 1e-12


@pytest.mark.parametrize(
    "params", [PARAMS, tuple(PARAMS), nn.ParameterList(PARAMS), MODEL.parameters()]
)
def test_parameters_in_any_iterable(params):
    v = randn_like(PARAMS)
    assert relative_error(flat(exact_hvp(func, params, v)), H @ flat(v)) < 1e-12


def test_one_vector_over_all_parameters():
    v = flat(randn_like(PARAMS))
    Hv = exact_hvp(func, PARAMS, v)
    assert Hv.shape == v.shape
    assert relative_error(Hv, H @ v) < 1e-12


@pytest.mark.parametrize("params", [lambda w: w, lambda w: [w], lambda w: {"w": w}])
@pytest.mark.parametrize("shape", [(2, 3), (6,)])
def test_one_parameter_takes_its_shape_or_a_flat_vector(params, shape):
    w = torch.arange(6.0).reshape(2, 3).requires_grad_()
    v = torch.arange(1.0, 7.0).reshape(shape)
    Hv = exact_hvp(lambda: (w**3).sum(), params(w), v)
    torch.testing.assert_close(Hv, 6 * w.detach().reshape(shape) * v)


@hypothesis.given(st.floats(-3, 3), st.integers(0, 100))
@hypothesis.settings(max_examples=20, deadline=None)
def test_is_linear_and_symmetric(c, seed):
    u, v = flat(randn_like(PARAMS, seed)), flat(randn_like(PARAMS, seed + 1))
    Hu, Hv = exact_hvp(func, PARAMS, u), exact_hvp(func, PARAMS, v)
    torch.testing.assert_close(exact_hvp(func, PARAMS, u + c * v), Hu + c * Hv)
    torch.testing.assert_close(u @ Hv, v @ Hu)


def test_unused_and_linear_parameters_have_zero_rows():
    a, b, unused = (torch.ones(n, requires_grad=True) for n in (2, 2, 3))
    v = [torch.ones(2), torch.ones(2), torch.ones(3)]
    Hv = exact_hvp(lambda: (a**2).sum() + b.sum(), [a, b, unused], v)
    assert [h.tolist() for h in Hv] == [[2, 2], [0, 0], [0, 0, 0]]
    assert exact_hvp(lambda: b.sum(), b, torch.ones(2)).tolist() == [0, 0]
    assert exact_hvp(lambda: a.sum(), b, torch.ones(2)).tolist() == [0, 0]


def test_create_graph_gives_third_derivatives():
    w = torch.tensor([1.0, 2.0], requires_grad=True, dtype=torch.float64)
    v = torch.tensor([1.0, 3.0], dtype=torch.float64)
    Hv = exact_hvp(lambda: (w**4).sum(), w, v, create_graph=True)
    (third,) = torch.autograd.grad(Hv.sum(), w)
    torch.testing.assert_close(third, 24 * w.detach() * v)
    assert not exact_hvp(lambda: (w**4).sum(), w, v).requires_grad


def test_results_of_a_computation_as_parameters():
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    z = 2 * w
    Hv = exact_hvp(lambda: (z**3).sum(), z, torch.ones(2))
    torch.testing.assert_close(Hv, 6 * z.detach())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(mode):
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    with mode():
        v = torch.ones(2)
        Hv = exact_hvp(lambda: (w.exp() * w.sin()).sum(), w, v, create_graph=True)
    (third,) = torch.autograd.grad(Hv.sum(), w)
    t = w.detach()
    torch.testing.assert_close(Hv.detach(), 2 * t.exp() * t.cos())
    torch.testing.assert_close(third, 2 * t.exp() * (t.cos() - t.sin()))


def test_attention_without_the_user_doing_anything():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.1, batch_first=True).double()
    layer.eval()
    tokens, params = torch.randn(2, 3, 4, dtype=torch.float64), list(layer.parameters())

    def loss():
        return layer(tokens).pow(3).sum()

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        dense = dense_hessian(loss, params)
    v = flat(randn_like(params))
    assert relative_error(exact_hvp(loss, params, v), dense @ v) < 1e-12
