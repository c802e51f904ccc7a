"""Hessian-vector products by differences of gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from curvop.functional import approximate_hvp, exact_hvp
from tests.functional.problems import (
    classifier,
    dense_hessian,
    flat,
    rademacher_like,
    randn_like,
    relative_error,
)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_is_close_in_single_precision(activation, scale):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 110), activation(), nn.Linear(110, 8))
    assert 11_900 < sum(p.numel() for p in model.parameters()) < 12_100
    X, y = torch.randn(64, 100), torch.randint(0, 8, (64,))
    double, params = copy.deepcopy(model).double(), list(model.parameters())

    def func():
        return nn.functional.cross_entropy(model(X), y)

    def func64():
        return nn.functional.cross_entropy(double(X.double()), y)

    v = [scale * b for b in rademacher_like(params)]
    v64 = [b.double() for b in v]
    truth = flat(exact_hvp(func64, list(double.parameters()), v64))
    # promised are 3e-3; the default step leaves u^(2/3) ~ 2e-5 times a constant
    assert relative_error(flat(approximate_hvp(func, params, v)).double(), truth) < 3e-4


@pytest.mark.parametrize("form", [list, tuple, flat])
def test_is_close_in_double_precision(form):
    model, X, y = classifier()
    params = list(model.parameters())

    def func():
        return nn.functional.cross_entropy(model(X), y)

    H = dense_hessian(func, params)
    v = form(randn_like(params))
    Hv = approximate_hvp(func, params, v)
    assert type(Hv) is type(v)
    vector, product = (v, Hv) if form is flat else (flat(v), flat(Hv))
    assert relative_error(product, H @ vector) < 1e-8
    assert not product.requires_grad


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_step_follows_the_parameters(scale):
    # f lives on the length scale of its parameters: an absolute step is off at one end
    w = scale * torch.linspace(1, 2, 50, dtype=torch.float64)
    w.requires_grad_()
    Hv = approximate_hvp(lambda: (w / scale).exp().sum(), w, torch.ones_like(w))
    truth = (w.detach() / scale).exp() / scale**2
    assert relative_error(Hv, truth) < (1e-9 if scale > 1 else 1e-5)


def test_zero_and_tiny_vectors():
    w = torch.tensor([1.0, 2.0], requires_grad=True, dtype=torch.float64)

    def func():
        return (w**3).sum()

    assert approximate_hvp(func, w, torch.zeros_like(w)).tolist() == [0, 0]
    for size in (1e-200, 1e200):  # their squares are 0 and inf
        Hv = approximate_hvp(func, w, torch.full_like(w, size))
        assert relative_error(Hv / size, 6 * w.detach()) < 1e-9


def test_eps_is_the_relative_step():
    w = torch.tensor([3.0], requires_grad=True, dtype=torch.float64)
    v = torch.tensor([0.5], dtype=torch.float64)
    # differences of 4 w³ are off by 4 h², with h = eps (1 + ‖w‖)
    Hv = approximate_hvp(lambda: (w**4).sum(), w, v, eps=0.1)
    torch.testing.assert_close(Hv, (12 * w.detach() ** 2 + 4 * 0.4**2) * v)


@pytest.mark.parametrize("num_samples", [2, 3, 8])
def test_several_steps_leave_out_the_second_power(num_samples):
    w = torch.tensor([3.0, -1.0], requires_grad=True, dtype=torch.float64)
    v = torch.tensor([0.5, 2.0], dtype=torch.float64)
    # differences of 4 w³ are off by 4 h² v³ at each step h, and by nothing else
    Hv = approximate_hvp(lambda: (w**4).sum(), w, v, num_samples, eps=0.1)
    torch.testing.assert_close(Hv, 12 * w.detach() ** 2 * v, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("activation", [nn.Tanh, nn.GELU, nn.Softplus])
def test_more_samples_have_less_error(activation, dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), activation(), nn.Linear(30, 4))
    X, y = torch.randn(64, 20), torch.randint(0, 4, (64,))
    double = copy.deepcopy(model).double()
    H = dense_hessian(
        lambda: nn.functional.cross_entropy(double(X.double()), y),
        list(double.parameters()),
    )
    params, X = list(model.to(dtype).parameters()), X.to(dtype)

    def error(num_samples):
        """Over a few vectors, root of the mean square."""
        errors = []
        for seed in range(5):
            v = rademacher_like(params, seed)
            Hv = flat(
                approximate_hvp(
                    lambda: nn.functional.cross_entropy(model(X), y), params, v, num_samples
                )
            )
            errors.append(relative_error(Hv.double(), H @ flat(v).double()))
        return torch.tensor(errors).square().mean().sqrt()

    one, two, eight = (error(m) for m in (1, 2, 8))
    assert two < 0.8 * one
    assert eight < 0.7 * two
    assert eight < (0.5 if dtype == torch.float32 else 0.1) * one


def test_each_sample_takes_two_gradients():
    w, calls = torch.ones(2, requires_grad=True), []

    def func():
        calls.append(w.detach().clone())
        return (w**3).sum()

    approximate_hvp(func, w, torch.ones(2), num_samples=5)
    assert len({float(at[0]) for at in calls}) == len(calls) == 10


@pytest.mark.parametrize("form", [list, tuple, flat])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_damping_is_added_to_the_diagonal(form, num_samples):
    model, X, y = classifier()
    params = list(model.parameters())

    def func():
        return nn.functional.cross_entropy(model(X), y)

    v = form(randn_like(params))
    product = approximate_hvp(func, params, v, num_samples, damping=0.3)
    assert type(product) is type(v)
    product, v = (b if form is flat else flat(b) for b in (product, v))
    A = dense_hessian(func, params) + 0.3 * torch.eye(len(v), dtype=v.dtype)
    assert relative_error(product, A @ v) < 1e-8


def test_dropout_draws_the_same_on_both_sides():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 30), nn.Dropout(), nn.Tanh(), nn.Linear(30, 2))
    model.double()
    params, X = list(model.parameters()), torch.randn(8, 4, dtype=torch.float64)

    def func():
        return model(X).square().sum()

    v = flat(randn_like(params))
    truth = exact_hvp(func, params, v)  # at the same state of the generator
    assert relative_error(approximate_hvp(func, params, v), truth) < 1e-8


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("call", [1, 2, None])
def test_restores_bit_for_bit(failure, call):
    ps = [torch.randn(50, requires_grad=True), torch.randn(3, 2, requires_grad=True)]
    ps[0].grad = torch.ones(50)
    before, calls = [p.detach().clone() for p in ps], []
    versions = [p._version for p in ps]

    def func():
        calls.append([p.detach().clone() for p in ps])
        if len(calls) == call:
            raise failure
        return sum((p**3).sum() for p in ps)

    v = [torch.randn(50), torch.randn(3, 2)]
    if call is None:
        approximate_hvp(func, ps, v)
    else:
        with pytest.raises(failure):
            approximate_hvp(func, ps, v)
    for there in calls:  # it did move them, all of them
        assert not any(map(torch.equal, there, before))
    assert all(map(torch.equal, ps, before))
    assert [p._version for p in ps] == versions
    assert torch.equal(ps[0].grad, torch.ones(50))
    assert ps[1].grad is None
    assert all(p.requires_grad and p.is_leaf for p in ps)


def test_graphs_built_before_still_hold():
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = (w**3).sum()
    approximate_hvp(lambda: (w**3).sum(), w, torch.ones(2))
    assert torch.autograd.grad(loss, w)[0].tolist() == [3, 12]


def test_refuses():
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    z = 2 * w
    with pytest.raises(ValueError, match="leaves"):
        approximate_hvp(lambda: (z**3).sum(), z, torch.ones(2))
    for eps in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="positive eps"):
            approximate_hvp(lambda: (w**3).sum(), w, torch.ones(2), eps=eps)
    for num_samples in (0, -1, 1.5):
        with pytest.raises(ValueError, match="number of samples"):
            approximate_hvp(lambda: (w**3).sum(), w, torch.ones(2), num_samples)
    with pytest.raises(ValueError, match="finite damping"):
        approximate_hvp(lambda: (w**3).sum(), w, torch.ones(2), damping=float("inf"))
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="finite v, got"):
            approximate_hvp(lambda: (w**3).sum(), w, torch.tensor([1.0, bad]))
