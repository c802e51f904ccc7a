"""Hessian-vector products of one function."""

from __future__ import annotations

import copy

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn

from curvop.functional import approximate_hvp, exact_hvp, model_hvp


def problem(dtype=torch.float64, width=7):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, width), nn.LayerNorm(width), nn.Tanh())
    model.append(nn.Linear(width, 3)).to(dtype)
    X, y = torch.randn(6, 5, dtype=dtype), torch.randint(0, 3, (6,))
    return model, X, y


def flat(blocks):
    return torch.cat([b.reshape(-1) for b in blocks])


def dense_hessian(func, params):
    g = flat(torch.autograd.grad(func(), params, create_graph=True))
    rows = [torch.autograd.grad(g_i, params, retain_graph=True) for g_i in g]
    return torch.stack([flat(row) for row in rows])


@pytest.fixture
def setup():
    model, X, y = problem()
    params = list(model.parameters())

    def func():
        return nn.functional.cross_entropy(model(X), y)

    return func, params, dense_hessian(func, params)


def randn_like(params):
    return [torch.randn_like(p) for p in params]


@pytest.mark.parametrize("form", [list, tuple])
def test_exact_equals_dense_in_the_form_of_v(setup, form):
    func, params, H = setup
    v = form(randn_like(params))
    Hv = exact_hvp(func, params, v)
    assert type(Hv) is form
    assert all(a.shape == p.shape for a, p in zip(Hv, params, strict=True))
    torch.testing.assert_close(flat(Hv), H @ flat(v), rtol=1e-10, atol=1e-12)


def test_exact_with_dicts(setup):
    func, params, H = setup
    named = {f"p{i}": p for i, p in enumerate(params)}
    v = {name: torch.randn_like(p) for name, p in reversed(named.items())}
    Hv = exact_hvp(func, named, v)
    assert list(Hv) == list(v)
    expected = H @ flat([v[name] for name in named])
    torch.testing.assert_close(flat([Hv[name] for name in named]), expected)


def test_unused_and_linear_parameters_have_zero_rows():
    a, b = (torch.ones(2, requires_grad=True) for _ in range(2))
    unused = torch.ones(3, requires_grad=True)
    v = [torch.ones(2), torch.ones(2), torch.ones(3)]
    Hv = exact_hvp(lambda: (a**2).sum() + b.sum(), [a, b, unused], v)
    assert [h.tolist() for h in Hv] == [[2, 2], [0, 0], [0, 0, 0]]
    assert exact_hvp(lambda: b.sum(), b, torch.ones(2)).tolist() == [0, 0]
    assert exact_hvp(lambda: torch.ones(()), b, torch.ones(2)).tolist() == [0, 0]


def test_create_graph_gives_third_derivatives():
    w = torch.tensor([1.0, 2.0], requires_grad=True, dtype=torch.float64)
    v = torch.tensor([1.0, 3.0], dtype=torch.float64)
    Hv = exact_hvp(lambda: (w**4).sum(), w, v, create_graph=True)
    (third,) = torch.autograd.grad(Hv.sum(), w)
    torch.testing.assert_close(third, 24 * w.detach() * v)
    assert not exact_hvp(lambda: (w**4).sum(), w, v).requires_grad


@hypothesis.given(st.floats(-3, 3), st.integers(0, 100))
@hypothesis.settings(max_examples=20, deadline=None)
def test_exact_is_linear_and_symmetric(c, seed):
    model, X, y = problem()
    params = list(model.parameters())
    torch.manual_seed(seed)
    u, v = randn_like(params), randn_like(params)

    def H(x):
        return flat(exact_hvp(lambda: nn.functional.cross_entropy(model(X), y), params, x))

    both = [a + c * b for a, b in zip(u, v, strict=True)]
    torch.testing.assert_close(H(both), H(u) + c * H(v))
    torch.testing.assert_close(flat(u) @ H(v), flat(v) @ H(u))


def test_approximate_is_close_in_single_precision():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(100, 110), nn.Tanh(), nn.Linear(110, 8))
    assert 11_900 < sum(p.numel() for p in model.parameters()) < 12_100
    X, y = torch.randn(64, 100), torch.randint(0, 8, (64,))
    double, params = copy.deepcopy(model).double(), list(model.parameters())

    def func():
        return nn.functional.cross_entropy(model(X), y)

    def func64():
        return nn.functional.cross_entropy(double(X.double()), y)

    for seed, scale in ((0, 1.0), (1, 1e-3), (2, 1e3)):
        torch.manual_seed(seed)
        v = [scale * (2.0 * torch.randint_like(p, 2) - 1) for p in params]
        truth = flat(exact_hvp(func64, list(double.parameters()), [b.double() for b in v]))
        error = (flat(approximate_hvp(func, params, v)) - truth).norm() / truth.norm()
        assert error < 3e-3


def test_approximate_in_double_precision_and_zero(setup):
    func, params, H = setup
    v = randn_like(params)
    Hv = flat(approximate_hvp(func, params, v))
    assert (Hv - H @ flat(v)).norm() < 1e-7 * (H @ flat(v)).norm()
    zero = approximate_hvp(func, params, [torch.zeros_like(p) for p in params])
    assert flat(zero).abs().max() == 0


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("call", [1, 2])
def test_approximate_restores_bit_for_bit(failure, call):
    w = torch.randn(50, requires_grad=True)
    w.grad = torch.ones(50)
    before, calls = w.detach().clone(), []

    def func():
        calls.append(1)
        if len(calls) == call:
            raise failure
        return (w**3).sum()

    with pytest.raises(failure):
        approximate_hvp(func, w, torch.randn(50))
    assert torch.equal(w.detach(), before)
    assert torch.equal(w.grad, torch.ones(50))
    approximate_hvp(lambda: (w**3).sum(), w, torch.randn(50))
    assert torch.equal(w.detach(), before)
    assert w.requires_grad


def test_model_hvp_takes_blocks_names_and_one_vector(setup):
    _, _, H = setup
    model, X, y = problem()
    lf = nn.CrossEntropyLoss()
    v = torch.randn(H.shape[0], dtype=torch.float64)
    sizes = [p.numel() for p in model.parameters()]
    parts = zip(v.split(sizes), model.named_parameters(), strict=True)
    named = {name: b.reshape(p.shape) for b, (name, p) in parts}
    torch.testing.assert_close(model_hvp(model, lf, X, y, v), H @ v)
    torch.testing.assert_close(
        flat(model_hvp(model, lf, X, y, list(named.values()))), H @ v
    )
    answer = model_hvp(model, lf, X, y, named)
    assert list(answer) == list(named)
    torch.testing.assert_close(flat(answer.values()), H @ v)


def test_model_hvp_leaves_frozen_parameters_out():
    model, X, y = problem()
    model[0].requires_grad_(False)
    v = [torch.ones_like(p) for p in model.parameters() if p.requires_grad]
    assert len(model_hvp(model, nn.CrossEntropyLoss(), X, y, v)) == len(v)
    assert not model[0].weight.requires_grad
    assert all(p.grad is None for p in model.parameters())


W = torch.ones(2, requires_grad=True)


@pytest.mark.parametrize(
    ("func", "params", "v", "error", "message"),
    [
        (lambda: W, W, torch.ones(2), ValueError, "scalar"),
        (lambda: 1.0, W, torch.ones(2), TypeError, "floating-point tensor"),
        (lambda: W.sum() * 1j, W, torch.ones(2), TypeError, "complex"),
        (lambda: W.sum(), W, torch.ones(3), ValueError, r"shape \(2,\).*\(3,\)"),
        (lambda: W.sum(), W, torch.ones(2).double(), TypeError, "float32.*float64"),
        (lambda: W.sum(), [W], [], ValueError, "at least one"),
        (lambda: W.sum(), [W], [torch.ones(2)] * 2, ValueError, "1 tensors"),
        (lambda: W.sum(), [torch.ones(2)], [torch.ones(2)], ValueError, "require"),
        (lambda: W.sum(), [torch.ones(2).int()], [torch.ones(2)], TypeError, "int32"),
        (lambda: W.sum(), 3, torch.ones(2), TypeError, "int"),
        (lambda: W.sum(), {"w": W}, {"u": torch.ones(2)}, ValueError, "'w'.*'u'"),
    ],
)
@pytest.mark.parametrize("hvp", [exact_hvp, approximate_hvp])
def test_bad_input(hvp, func, params, v, error, message):
    with pytest.raises(error, match=message):
        hvp(func, params, v)
